/** Writes a transcript as a file: text, subtitles, tables. Pure. */

import { joinTexts, timeWords, type TimedWord } from "./words";
import type { Cue, Transcript } from "./types";

/** The shape of subtitles; 0 is no limit. */
export interface SubtitleShape {
  /** Columns of a line. Chinese, Japanese and Korean letters take two. */
  readonly maxLineWidth: number;
  readonly maxLines: number;
}

export const NO_SHAPE: SubtitleShape = { maxLineWidth: 0, maxLines: 0 };

/** A pause, in seconds, that begins a paragraph. */
const PARAGRAPH_PAUSE_S = 1.5;

export type TextFormat = "txt" | "srt" | "vtt" | "tsv" | "json";

/** Write a transcript in a format. */
export function formatTranscript(transcript: Transcript, format: TextFormat, shape: SubtitleShape = NO_SHAPE): string {
  switch (format) {
    case "txt":
      return formatText(transcript);
    case "srt":
      return formatSrt(transcript, shape);
    case "vtt":
      return formatVtt(transcript, shape);
    case "tsv":
      return formatTsv(transcript);
    case "json":
      return formatJson(transcript);
  }
}

/** A paragraph: what one speaker says between two pauses. */
export interface Paragraph {
  readonly start: number;
  readonly speaker: string;
  readonly text: string;
}

/** Divide the text into paragraphs. */
export function listParagraphs({ cues, speakers }: Pick<Transcript, "cues" | "speakers">): Paragraph[] {
  const groups: Cue[][] = [];
  for (const cue of cues) {
    const before = groups.at(-1)?.at(-1);
    const isNew = !before || cue.start - before.end >= PARAGRAPH_PAUSE_S || cue.speaker !== before.speaker;
    if (isNew) groups.push([cue]);
    else groups.at(-1)?.push(cue);
  }
  return groups.map((group) => ({
    start: group[0]?.start ?? 0,
    speaker: nameSpeaker(group[0]?.speaker, speakers),
    text: joinTexts(group.map((cue) => cue.text.replace(/\s+/gu, " "))),
  }));
}

/** The name of a speaker: the user's, else the model's label. */
export function nameSpeaker(label: string | undefined, names: Transcript["speakers"]): string {
  return label ? names?.[label] || label : "";
}

function formatText(transcript: Transcript): string {
  const paragraphs = listParagraphs(transcript).map(({ speaker, text }) => (speaker ? `${speaker}: ${text}` : text));
  return paragraphs.filter(Boolean).join("\n\n") + "\n";
}

/** Format a time as hh:mm:ss and milliseconds, rounded as a whole. */
export function formatCueTime(seconds: number, mark: string): string {
  const ms = Math.round(seconds * 1000);
  const pad = (value: number, digits = 2) => String(value).padStart(digits, "0");
  const clock = [Math.floor(ms / 3_600_000), Math.floor(ms / 60_000) % 60, Math.floor(ms / 1000) % 60].map((part) => pad(part));
  return clock.join(":") + mark + pad(ms % 1000, 3);
}

/** The text of a subtitle. A blank line would end it, and an arrow would begin another. */
function cleanText(text: string): string {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean)
    .join("\n")
    .replaceAll("-->", "→");
}

function formatSrt({ cues, speakers }: Transcript, shape: SubtitleShape): string {
  return shapeCues(cues, shape)
    .map((cue, index) => {
      const speaker = nameSpeaker(cue.speaker, speakers);
      const times = `${formatCueTime(cue.start, ",")} --> ${formatCueTime(cue.end, ",")}`;
      return `${index + 1}\n${times}\n${speaker ? `${cleanText(speaker)}: ` : ""}${cleanText(cue.text)}\n\n`;
    })
    .join("");
}

const escapeVtt = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function formatVtt({ cues, speakers }: Transcript, shape: SubtitleShape): string {
  const blocks = shapeCues(cues, shape).map((cue) => {
    const speaker = nameSpeaker(cue.speaker, speakers).replace(/\s+/gu, " ");
    const times = `${formatCueTime(cue.start, ".")} --> ${formatCueTime(cue.end, ".")}`;
    return `${times}\n${speaker ? `<v ${escapeVtt(speaker)}>` : ""}${escapeVtt(cleanText(cue.text))}\n\n`;
  });
  return "WEBVTT\n\n" + blocks.join("");
}

function formatTsv({ cues }: Transcript): string {
  const rows = cues.map((cue) => [Math.round(cue.start * 1000), Math.round(cue.end * 1000), cue.text.replace(/\s+/gu, " ").trim()]);
  return [["start", "end", "text"], ...rows].map((row) => row.join("\t") + "\n").join("");
}

const roundTime = (seconds: number) => Math.round(seconds * 1000) / 1000;

function formatJson({ name, model, language, task, duration, cues, speakers }: Transcript): string {
  const segments = cues.map((cue, id) => ({
    id,
    start: roundTime(cue.start),
    end: roundTime(cue.end),
    text: cue.text,
    ...(cue.speaker ? { speaker: nameSpeaker(cue.speaker, speakers) } : {}),
    ...(cue.words
      ? { words: timeWords(cue).map((word) => ({ word: word.text, start: roundTime(word.start), end: roundTime(word.end) })) }
      : {}),
  }));
  const text = joinTexts(cues.map((cue) => cue.text));
  return JSON.stringify({ file: name, model, task, language, duration: roundTime(duration), text, segments }, null, 2) + "\n";
}

/** Divide cues into lines of at most `maxLineWidth` columns, and those with more than `maxLines` lines into several cues. */
export function shapeCues(cues: readonly Cue[], shape: SubtitleShape): Cue[] {
  const filled = cues.filter((cue) => cue.text.trim());
  return shape.maxLineWidth ? filled.flatMap((cue) => shapeCue(cue, shape)) : filled;
}

function shapeCue(cue: Cue, { maxLineWidth, maxLines }: SubtitleShape): Cue[] {
  const lines = breakLines(cue.text, timeWords(cue), maxLineWidth);
  const perCue = maxLines || lines.length;
  const count = Math.ceil(lines.length / perCue);
  return Array.from({ length: count }, (_, number) => {
    // Several cues of one text: about as many lines each.
    const part = lines.slice(Math.round((number * lines.length) / count), Math.round(((number + 1) * lines.length) / count));
    return {
      ...cue,
      text: part.map((line) => line.text).join("\n"),
      start: number ? (part[0]?.start ?? cue.start) : cue.start,
      end: number < count - 1 ? (part.at(-1)?.end ?? cue.end) : cue.end,
    };
  });
}

interface Line {
  readonly text: string;
  readonly start: number;
  readonly end: number;
}

/** Break text into as few lines as it takes, about equally long. A word that is longer than a line gets its own. */
function breakLines(text: string, words: readonly TimedWord[], width: number): Line[] {
  const fill = (limit: number): TimedWord[][] => {
    const lines: TimedWord[][] = [];
    for (const word of words) {
      const line = lines.at(-1);
      const start = line?.[0]?.offset ?? 0;
      if (line && measureColumns(text.slice(start, word.offset + word.text.length)) <= limit) line.push(word);
      else lines.push([word]);
    }
    return lines;
  };
  const needed = fill(width).length;
  let limit = Math.min(width, Math.ceil(measureColumns(text) / Math.max(needed, 1)));
  while (limit < width && fill(limit).length > needed) limit += 1;
  return fill(limit).map((line) => {
    const last = line.at(-1);
    const end = (last?.offset ?? 0) + (last?.text.length ?? 0);
    const shown = text.slice(line[0]?.offset ?? 0, end).replace(/\s+/gu, " ");
    return { text: shown, start: line[0]?.start ?? 0, end: last?.end ?? 0 };
  });
}

const WIDE = /[\u1100-\u115f\u2e80-\u303e\u3041-\u33ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|[\u{20000}-\u{3fffd}]/u;

/** The columns that a text takes. Marks above and below letters take none. */
export function measureColumns(text: string): number {
  let columns = 0;
  for (const letter of text) columns += WIDE.test(letter) ? 2 : /\p{M}/u.test(letter) ? 0 : 1;
  return columns;
}
