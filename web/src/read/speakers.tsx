import { t } from "../i18n";
import { nameSpeaker } from "../transcript/formats";
import type { ReadSession } from "./session";

/** The speakers of a transcript: a name that is changed here is changed everywhere. */
export function SpeakerNames({ session }: { session: ReadSession }) {
  const labels = Array.from(new Set(session.cues.value.map((cue) => cue.speaker).filter((label) => label !== undefined)));
  if (!labels.length) return null;
  return (
    <fieldset class="row wrap speakers">
      <legend>{t("read.speakers")}</legend>
      {labels.map((label, index) => (
        <label key={label} class={`speaker-chip color-${index % 6}`}>
          <span class="visually-hidden">{t("read.rename", { speaker: label })}</span>
          <input
            value={nameSpeaker(label, session.speakers.value)}
            onChange={(event) => session.renameSpeaker(label, event.currentTarget.value.trim())}
          />
        </label>
      ))}
    </fieldset>
  );
}
