import { t } from "../i18n";
import { Icon } from "../parts/icon";
import { formatClock } from "../transcript/clock";
import { SPEEDS, speed } from "./player";
import type { ReadSession } from "./session";

/** The player's buttons, always in sight. */
export function PlayerBar({ session, onChoose }: { session: ReadSession; onChoose: (file: File) => void }) {
  const { player } = session;
  if (!player.address.value || player.hasFailed.value) {
    return (
      <div class="player-bar">
        <span>{t(player.hasFailed.value ? "player.failed" : "player.missing", { name: session.original.name })}</span>
        <label class="button">
          {t("player.choose")}
          <input type="file" class="visually-hidden" onChange={(event) => chooseFirst(event.currentTarget, onChoose)} />
        </label>
      </div>
    );
  }
  return (
    <div class="player-bar" role="group" aria-label={t("player.label")}>
      <button type="button" onClick={() => player.skip(-5)} aria-label={t("player.back")}>
        −5
      </button>
      <button type="button" class="primary play" onClick={() => player.toggle()} aria-label={t(player.isPlaying.value ? "player.pause" : "player.play")}>
        <Icon name={player.isPlaying.value ? "pause" : "play"} />
      </button>
      <button type="button" onClick={() => player.skip(5)} aria-label={t("player.forward")}>
        +5
      </button>
      <Position session={session} />
      <select aria-label={t("player.speed")} value={speed.value} onChange={(event) => player.setSpeed(Number(event.currentTarget.value))}>
        {SPEEDS.map((one) => (
          <option key={one} value={one}>
            {one}×
          </option>
        ))}
      </select>
      {!session.isFollowing.value && (
        <button type="button" onClick={() => (session.isFollowing.value = true)}>
          {t("player.follow")}
        </button>
      )}
    </div>
  );
}

/** The place in the recording. Only this part follows the time. */
function Position({ session }: { session: ReadSession }) {
  const { player } = session;
  const time = player.tenths.value;
  const duration = player.duration.value || session.original.duration;
  const text = `${formatClock(time)} / ${formatClock(duration)}`;
  return (
    <>
      <input
        type="range"
        min={0}
        max={duration || 1}
        step={0.1}
        value={time}
        aria-label={t("player.position")}
        aria-valuetext={text}
        onInput={(event) => player.seek(event.currentTarget.valueAsNumber)}
      />
      <span class="clock">{text}</span>
    </>
  );
}

function chooseFirst(input: HTMLInputElement, onChoose: (file: File) => void): void {
  const file = input.files?.[0];
  if (file) onChoose(file);
  input.value = "";
}
