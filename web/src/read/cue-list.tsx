import { useComputed, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { language, t } from "../i18n";
import { nameSpeaker } from "../transcript/formats";
import { findCueAt, findWordAt } from "../transcript/cues";
import { timeWords } from "../transcript/words";
import { CueRow, focusCue } from "./cue-row";
import { highlight } from "./highlights";
import type { ReadSession } from "./session";

const COLORS = 6;
/** Seconds by which a player may stop before the place that it was sent to. */
const SEEK_SLACK_S = 0.03;

interface CueListProps {
  readonly session: ReadSession;
  /** The text of another transcript beside each cue, by the cue's id; null if there is none. */
  readonly beside: ReadonlyMap<number, preact.ComponentChildren> | null;
}

/** All cues. */
export function CueList({ session, beside }: CueListProps) {
  const list = useRef<HTMLOListElement>(null);
  useFollowing(session);
  useStopFollowing(session, list);
  const cues = session.cues.value;
  const speakers = session.speakers.value;
  const labels = Array.from(new Set(cues.map((cue) => cue.speaker).filter((label) => label !== undefined)));
  const selected = session.selected.value;
  const tabStop = selected ?? cues[0]?.id;
  const editing = session.editing.value;
  return (
    <>
      <ol ref={list} class="cues" aria-label={t("read.textLabel")} onKeyDown={(event) => moveSelection(session, event)}>
        {cues.map((cue, index) => (
          <CueRow
            key={cue.id}
            session={session}
            cue={cue}
            isSelected={selected === cue.id}
            caret={editing?.id === cue.id ? editing.offset : undefined}
            isTabStop={tabStop === cue.id}
            speaker={nameSpeaker(cue.speaker, speakers)}
            color={cue.speaker ? labels.indexOf(cue.speaker) % COLORS : 0}
            isSpeakerShown={Boolean(cue.speaker) && cue.speaker !== cues[index - 1]?.speaker}
            language={language.value}
            beside={beside ? (beside.get(cue.id) ?? "—") : undefined}
          />
        ))}
      </ol>
      <datalist id="speakers">
        {labels.map((label) => (
          <option key={label} value={nameSpeaker(label, speakers)} />
        ))}
      </datalist>
    </>
  );
}

/** Marks the cue and the word that are spoken, and scrolls along. */
function useFollowing(session: ReadSession): void {
  const time = useComputed(() => session.player.time.value + SEEK_SLACK_S);
  const active = useComputed(() => session.cues.value[findCueAt(session.cues.value, time.value)]);
  const words = useComputed(() => (active.value ? timeWords(active.value) : []));
  const word = useComputed(() => findWordAt(words.value, time.value));
  useSignalEffect(() => {
    const id = active.value?.id;
    const row = id === undefined ? null : document.getElementById(`cue-${id}`);
    row?.setAttribute("data-active", "");
    if (row && session.isFollowing.peek() && session.player.isPlaying.peek() && !session.editing.peek()) scrollTo(row);
    return () => row?.removeAttribute("data-active");
  });
  useSignalEffect(() => {
    const cue = active.value;
    const spoken = word.value;
    const isIn = cue && spoken && session.player.time.peek() < cue.end + 0.2 && session.editing.value?.id !== cue.id;
    highlight("word", isIn ? [{ cue: cue.id, start: spoken.offset, end: spoken.offset + spoken.text.length }] : []);
  });
  useEffect(() => () => highlight("word", []), []);
}

/** Scroll a row to the middle, unless it is near it. */
export function scrollTo(row: Element): void {
  const { top, bottom } = row.getBoundingClientRect();
  const height = window.innerHeight;
  if (top > height * 0.2 && bottom < height * 0.65) return;
  const isNear = Math.abs(top) < height * 2 && !matchMedia("(prefers-reduced-motion: reduce)").matches;
  row.scrollIntoView({ block: "center", behavior: isNear ? "smooth" : "instant" });
}

/** A user who scrolls wants to read elsewhere. */
function useStopFollowing(session: ReadSession, list: preact.RefObject<HTMLElement>): void {
  useEffect(() => {
    const element = list.current;
    const stop = () => {
      if (session.player.isPlaying.value) session.isFollowing.value = false;
    };
    element?.addEventListener("wheel", stop, { passive: true });
    element?.addEventListener("touchmove", stop, { passive: true });
    return () => {
      element?.removeEventListener("wheel", stop);
      element?.removeEventListener("touchmove", stop);
    };
  }, [session]);
}

/** Arrow keys move from cue to cue. */
function moveSelection(session: ReadSession, event: KeyboardEvent): void {
  const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
  if (!step || !(event.target instanceof HTMLElement) || !event.target.classList.contains("time")) return;
  const cues = session.cues.value;
  const index = cues.findIndex((cue) => cue.id === session.selected.value);
  const next = cues[Math.min(Math.max(index + step, 0), cues.length - 1)];
  if (!next) return;
  event.preventDefault();
  session.selected.value = next.id;
  document.getElementById(`cue-${next.id}`)?.scrollIntoView({ block: "nearest" });
  focusCue(next.id);
}
