/** Sets another transcript of the same recording beside one: another model's, or a translation. Pure. */

import { normalizeWord, timeWords } from "./words";
import type { Cue } from "./types";

/** Text of the other transcript. `isDifferent` where this one has other words. */
export interface ComparedText {
  readonly text: string;
  readonly isDifferent: boolean;
}

/** Words that are aligned at once. The work grows with the square. */
const BLOCK_WORDS = 400;
/** Seconds by which two models may differ about a word's time. */
const SLACK_S = 10;

interface ComparedWord {
  readonly key: string;
  readonly text: string;
  readonly time: number;
  /** The index of the word's cue. */
  readonly cue: number;
}

/** The other transcript's cues beside each cue, by their times: for a translation, whose words cannot be compared. */
export function placeBeside(cues: readonly Cue[], other: readonly Cue[]): Map<number, ComparedText[]> {
  const found = new Map<number, ComparedText[]>();
  let index = 0;
  for (const cue of other) {
    const middle = (cue.start + cue.end) / 2;
    while ((cues[index + 1]?.start ?? Infinity) <= middle) index += 1;
    const own = cues[index];
    if (own) append(found, own.id, { text: cue.text, isDifferent: false });
  }
  return found;
}

/** The other transcript's words beside each cue, with those marked that differ. */
export function compareWords(cues: readonly Cue[], other: readonly Cue[]): Map<number, ComparedText[]> {
  const found = new Map<number, ComparedText[]>();
  const [own, others] = [listWords(cues), listWords(other)];
  let at = 0;
  for (let from = 0; from < own.length; from += BLOCK_WORDS) {
    const next = own[from + BLOCK_WORDS]?.time ?? Infinity;
    let to = at;
    while (to < others.length && (others[to]?.time ?? 0) < next + SLACK_S) to += 1;
    const block = others.slice(at, to);
    const matches = alignWords(own.slice(from, from + BLOCK_WORDS), block);
    const used = next === Infinity ? block.length : countUsed(block, matches, next);
    placeWords(found, cues, block.slice(0, used), matches);
    at += used;
  }
  return found;
}

/** How many words belong to a block. Those behind the last match may match words of the next block. */
function countUsed(block: readonly ComparedWord[], matches: readonly (ComparedWord | undefined)[], end: number): number {
  const last = matches.findLastIndex((match) => match !== undefined);
  const early = block.findIndex((word) => word.time >= end);
  return last < 0 ? (early < 0 ? block.length : early) : Math.max(last + 1, block.length - BLOCK_WORDS);
}

function listWords(cues: readonly Cue[]): ComparedWord[] {
  return cues.flatMap((cue, index) =>
    timeWords(cue).map((word) => ({
      key: normalizeWord(word.text),
      text: word.text,
      time: (word.start + word.end) / 2,
      cue: index,
    })),
  );
}

/** Put words beside the cues of the words that they match. What has no match stands by its time, between the matches around it. */
function placeWords(
  found: Map<number, ComparedText[]>,
  cues: readonly Cue[],
  words: readonly ComparedWord[],
  matches: readonly (ComparedWord | undefined)[],
): void {
  let before = 0;
  words.forEach((word, index) => {
    const match = matches[index];
    let place = match?.cue ?? before;
    if (!match) {
      const after = matches.slice(index).find((one) => one !== undefined)?.cue ?? cues.length - 1;
      while (place < after && (cues[place + 1]?.start ?? Infinity) <= word.time) place += 1;
    }
    before = place;
    const cue = cues[place];
    if (cue) append(found, cue.id, { text: word.text, isDifferent: !match && word.key !== "" });
  });
}

/** For each of the other words, the word that it equals: the longest common sequence. */
function alignWords(own: readonly ComparedWord[], others: readonly ComparedWord[]): (ComparedWord | undefined)[] {
  const width = others.length + 1;
  const lengths = new Uint16Array((own.length + 1) * width);
  const at = (i: number, j: number) => lengths[i * width + j] ?? 0;
  for (let i = own.length - 1; i >= 0; i -= 1) {
    for (let j = others.length - 1; j >= 0; j -= 1) {
      const isSame = own[i]?.key === others[j]?.key;
      lengths[i * width + j] = isSame ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const matches = new Array<ComparedWord | undefined>(others.length).fill(undefined);
  for (let i = 0, j = 0; i < own.length && j < others.length; ) {
    if (own[i]?.key === others[j]?.key) {
      matches[j] = own[i];
      i += 1;
      j += 1;
    } else if (at(i + 1, j) >= at(i, j + 1)) i += 1;
    else j += 1;
  }
  return matches;
}

function append(found: Map<number, ComparedText[]>, id: number, part: ComparedText): void {
  const parts = found.get(id);
  const last = parts?.at(-1);
  if (!parts) found.set(id, [part]);
  else if (last?.isDifferent === part.isDifferent) parts[parts.length - 1] = { ...last, text: `${last.text} ${part.text}` };
  else parts.push(part);
}
