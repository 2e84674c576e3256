/** Edits of a transcript's cues. Every edit returns a new list, so that it can be undone. Pure. */

import { joinTexts, timeWords, type TimedWord } from "./words";
import type { Cue, Word } from "./types";

export type Cues = readonly Cue[];

/** Seconds of a new cue where there is room. */
const NEW_CUE_S = 2;
const MIN_CUE_S = 0.1;

/** The index of the cue that is spoken at a time, or the last one before it; -1 before the first. */
export function findCueAt(cues: Cues, time: number): number {
  let low = 0;
  let high = cues.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((cues[middle]?.start ?? 0) <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The word that is spoken at a time, or the last one before it. */
export function findWordAt(words: readonly TimedWord[], time: number): TimedWord | undefined {
  return words.findLast((word) => word.start <= time) ?? words[0];
}

/** The word at a place in the text, or the next one. */
export function findWordAtOffset(words: readonly TimedWord[], offset: number): TimedWord | undefined {
  return words.find((word) => offset < word.offset + word.text.length) ?? words.at(-1);
}

export function setText(cues: Cues, id: number, text: string): Cues {
  const index = cues.findIndex((cue) => cue.id === id);
  const cue = cues[index];
  return !cue || cue.text === text ? cues : cues.with(index, { ...cue, text });
}

export function setSpeaker(cues: Cues, id: number, speaker: string): Cues {
  return cues.map((cue) => {
    if (cue.id !== id) return cue;
    const { speaker: _, ...rest } = cue;
    return speaker ? { ...rest, speaker } : rest;
  });
}

/** Set a cue's times. The words keep theirs, within the cue. */
export function setTimes(cues: Cues, id: number, start: number, end: number): Cues {
  const from = Math.max(0, start);
  const to = Math.max(from + MIN_CUE_S, end);
  const clamp = (time: number) => Math.min(Math.max(time, from), to);
  const changed = cues.map((cue) => {
    if (cue.id !== id) return cue;
    const words = cue.words?.map((word) => ({ ...word, start: clamp(word.start), end: clamp(word.end) }));
    return { ...cue, start: from, end: to, ...(words ? { words } : {}) };
  });
  return changed.sort((one, other) => one.start - other.start);
}

/** Split a cue at a place in its text. Nothing changes if one part would be empty. */
export function splitCue(cues: Cues, id: number, offset: number): Cues {
  const index = cues.findIndex((cue) => cue.id === id);
  const cue = cues[index];
  if (!cue) return cues;
  const [before, after] = [cue.text.slice(0, offset).trim(), cue.text.slice(offset).trim()];
  if (!before || !after) return cues;
  const words = timeWords(cue);
  const first = words.findIndex((word) => word.offset + word.text.length > offset);
  const inside = words[first];
  // Within a word, the time lies within the word as well.
  const share = inside ? Math.max(0, offset - inside.offset) / inside.text.length : 0;
  const time = inside ? inside.start + (inside.end - inside.start) * share : cue.end;
  const isInWord = share > 0;
  const end = isInWord || first < 1 ? time : Math.min(words[first - 1]?.end ?? time, time);
  const [head, tail] = [words.slice(0, isInWord ? first + 1 : first), words.slice(first)];
  const keep = (part: readonly TimedWord[]) => (cue.words ? { words: part.map(toWord) } : {});
  const parts = [
    { ...cue, text: before, end, ...keep(head) },
    { ...cue, id: nextId(cues), text: after, start: time, ...keep(tail) },
  ];
  return cues.toSpliced(index, 1, ...parts);
}

/** Join a cue with the next one. */
export function mergeCues(cues: Cues, id: number): Cues {
  const index = cues.findIndex((cue) => cue.id === id);
  const [one, other] = [cues[index], cues[index + 1]];
  if (!one || !other) return cues;
  const words = one.words || other.words ? { words: [...timeWords(one), ...timeWords(other)].map(toWord) } : {};
  const joined = { ...one, text: joinTexts([one.text, other.text]), end: Math.max(one.end, other.end), ...words };
  return cues.toSpliced(index, 2, joined);
}

/** Insert an empty cue behind another. */
export function insertCue(cues: Cues, after: number): Cues {
  const index = cues.findIndex((cue) => cue.id === after);
  const start = cues[index]?.end ?? 0;
  const next = cues[index + 1]?.start ?? Infinity;
  const end = next - start >= MIN_CUE_S ? Math.min(start + NEW_CUE_S, next) : start + MIN_CUE_S;
  return cues.toSpliced(index + 1, 0, { id: nextId(cues), start, end, text: "" });
}

export function removeCue(cues: Cues, id: number): Cues {
  return cues.filter((cue) => cue.id !== id);
}

/** Replace a text in all cues, whatever its case. */
export function replaceText(cues: Cues, search: string, replacement: string): Cues {
  if (!search) return cues;
  const pattern = new RegExp(escapePattern(search), "giu");
  return cues.map((cue) => {
    const text = cue.text.replace(pattern, () => replacement);
    return text === cue.text ? cue : { ...cue, text };
  });
}

/** A place where a searched text stands. */
export interface SearchHit {
  readonly cue: number;
  readonly start: number;
  readonly end: number;
}

/** Find a text in all cues, whatever its case. `cue` of a hit is the cue's id, `start` and `end` are places in its text. */
export function findText(cues: Cues, search: string): SearchHit[] {
  const wanted = search.trim();
  if (!wanted) return [];
  const pattern = new RegExp(escapePattern(wanted), "giu");
  return cues.flatMap((cue) =>
    Array.from(cue.text.matchAll(pattern), (match) => ({ cue: cue.id, start: match.index, end: match.index + match[0].length })),
  );
}

/** Characters that a reader has to read in a second. */
export function measureReadingSpeed(cue: Cue): number {
  const letters = Array.from(cue.text.replace(/\s+/gu, " ").trim()).length;
  return letters / Math.max(cue.end - cue.start, MIN_CUE_S);
}

function escapePattern(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/gu, "\\$&");
}

function nextId(cues: Cues): number {
  return cues.reduce((most, cue) => Math.max(most, cue.id), 0) + 1;
}

function toWord(word: TimedWord): Word {
  return { start: word.start, end: word.end, text: word.text };
}
