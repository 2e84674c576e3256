/** Divides text into words, in scripts with and without spaces, and gives each word its time. */

import type { Cue } from "./types";

/** A word of a cue: its place in the text, and its times. */
export interface TimedWord {
  readonly text: string;
  readonly offset: number;
  readonly start: number;
  readonly end: number;
}

interface PlacedWord {
  readonly text: string;
  readonly offset: number;
}

/** Scripts that are written without spaces between words. */
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;

const segmenter = typeof Intl.Segmenter === "function" ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

/** The words of a text, with the marks that stand beside them. */
export function splitWords(text: string): PlacedWord[] {
  const found: PlacedWord[] = [];
  for (const match of text.matchAll(/\S+/gu)) {
    if (UNSPACED.test(match[0])) found.push(...splitUnspaced(match[0], match.index));
    else found.push({ text: match[0], offset: match.index });
  }
  return found;
}

/** Words of text without spaces. A mark belongs to the word before it. */
function splitUnspaced(text: string, at: number): PlacedWord[] {
  const found: PlacedWord[] = [];
  const parts = segmenter
    ? Array.from(segmenter.segment(text), (part) => ({ text: part.segment, isWord: part.isWordLike }))
    : Array.from(text, (letter) => ({ text: letter, isWord: true }));
  let offset = at;
  for (const part of parts) {
    const before = found.at(-1);
    if (part.isWord || !before) found.push({ text: part.text, offset });
    else found[found.length - 1] = { text: before.text + part.text, offset: before.offset };
    offset += part.text.length;
  }
  return found;
}

/** Whether two texts are joined without a space between them. */
function isUnspacedBoundary(before: string, after: string): boolean {
  const last = Array.from(before).at(-1);
  const first = Array.from(after)[0];
  return !last || !first || (UNSPACED.test(first) && (UNSPACED.test(last) || /\p{P}/u.test(last)));
}

/** Join texts, with spaces where their script has them. */
export function joinTexts(texts: readonly string[]): string {
  const parts: string[] = [];
  for (const text of texts.map((one) => one.trim()).filter(Boolean)) {
    const before = parts.at(-1);
    parts.push(before === undefined || isUnspacedBoundary(before, text) ? text : ` ${text}`);
  }
  return parts.join("");
}

/** The letters and digits of a word, in lower case: equal for words that differ in marks and case alone. */
export const normalizeWord = (text: string) => text.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");

/** The words of a cue with their times: the model's for words that it heard, else shared out by length. */
export function timeWords(cue: Cue): TimedWord[] {
  const placed = splitWords(cue.text);
  const heard = (cue.words ?? []).map((word) => ({ ...word, key: normalizeWord(word.text) }));
  const keys = placed.map((word) => normalizeWord(word.text));
  let before = 0;
  while (before < keys.length && before < heard.length && keys[before] === heard[before]?.key) before += 1;
  let after = 0;
  const most = Math.min(keys.length, heard.length) - before;
  while (after < most && keys[keys.length - 1 - after] === heard[heard.length - 1 - after]?.key) after += 1;
  const tail = keys.length - after;
  const heardTail = heard.length - after;
  const from = before ? (heard[before - 1]?.end ?? cue.start) : cue.start;
  const to = after ? (heard[heardTail]?.start ?? cue.end) : cue.end;
  const middle = shareTime(placed.slice(before, tail), from, Math.max(from, to));
  return placed.map((word, index) => {
    const shared = middle[index - before];
    const times = index < before ? heard[index] : index >= tail ? heard[heardTail + index - tail] : shared;
    return { text: word.text, offset: word.offset, start: times?.start ?? cue.start, end: times?.end ?? cue.end };
  });
}

/** Share out time by the words' length. */
function shareTime(words: readonly PlacedWord[], start: number, end: number): { start: number; end: number }[] {
  const weights = words.map((word) => word.text.length + 1);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let at = start;
  return weights.map((weight) => {
    const from = at;
    at += ((end - start) * weight) / total;
    return { start: from, end: at };
  });
}
