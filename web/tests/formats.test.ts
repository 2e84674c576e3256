import { describe, expect, it } from "vitest";
import { strFromU8, unzipSync } from "fflate";
import { formatDocx } from "../src/transcript/docx";
import { formatTranscript, measureColumns, shapeCues } from "../src/transcript/formats";
import type { Cue, Transcript } from "../src/transcript/types";

const CUES: Cue[] = [
  { id: 4, start: 0.5, end: 2.3456, text: "It was the best of times," },
  { id: 2, start: 2.4, end: 3661.0004, text: "it was <i>the</i> worst & --> last\n\nof times." },
];

function transcript(cues: Cue[] = CUES, extra: Partial<Transcript> = {}): Transcript {
  const facts = { id: "x", name: "tale <1>.mp3", size: 1, created: 0, model: "m", language: "en", task: "transcribe" as const };
  return { ...facts, duration: 3661.5, excerpt: "", warnings: [], cues, ...extra };
}

describe("subtitles", () => {
  it("writes SubRip with comma milliseconds, and no blank line or arrow inside a cue", () => {
    expect(formatTranscript(transcript(), "srt")).toBe(
      "1\n00:00:00,500 --> 00:00:02,346\nIt was the best of times,\n\n" +
        "2\n00:00:02,400 --> 01:01:01,000\nit was <i>the</i> worst & → last\nof times.\n\n",
    );
  });

  it("writes WebVTT, escaped, with voices", () => {
    const spoken = transcript([{ id: 1, start: 0, end: 1, text: "a < b", speaker: "S1" }], { speakers: { S1: "Ada > Eve" } });
    expect(formatTranscript(spoken, "vtt")).toBe("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n<v Ada &gt; Eve>a &lt; b\n\n");
    expect(formatTranscript(spoken, "srt")).toContain("\nAda > Eve: a < b\n");
  });

  it("leaves out cues without text", () => {
    expect(formatTranscript(transcript([{ id: 1, start: 0, end: 1, text: " \n" }]), "srt")).toBe("");
  });

  it("rounds times as a whole", () => {
    expect(formatTranscript(transcript([{ id: 1, start: 3.3, end: 59.9996, text: "a" }]), "srt")).toContain("00:00:03,300 --> 00:01:00,000");
  });

  it("breaks lines evenly, and divides cues with too many lines at the words' times", () => {
    const cue = { id: 1, start: 0, end: 10, text: "one two three four five six seven eight nine ten" };
    const lines = shapeCues([cue], { maxLineWidth: 18, maxLines: 2 });
    expect(lines.map((part) => part.text)).toEqual(["one two three four\nfive six seven", "eight nine ten"]);
    expect(lines[0]?.start).toBe(0);
    expect(lines[1]?.end).toBe(10);
    expect(lines[0]?.end).toBeLessThanOrEqual(lines[1]?.start ?? 0);
    for (const line of lines.flatMap((part) => part.text.split("\n"))) expect(line.length).toBeLessThanOrEqual(18);
  });

  it("counts wide letters twice and breaks text without spaces", () => {
    expect(measureColumns("日本e\u0301")).toBe(5);
    const parts = shapeCues([{ id: 1, start: 0, end: 4, text: "今日はとても良い天気ですね。" }], { maxLineWidth: 16, maxLines: 1 });
    expect(parts.length).toBe(2);
    expect(parts.map((part) => part.text).join("")).toBe("今日はとても良い天気ですね。");
  });
});

describe("other formats", () => {
  it("writes paragraphs at pauses and where the speaker changes", () => {
    const cues: Cue[] = [
      { id: 1, start: 0, end: 1, text: "One.", speaker: "A" },
      { id: 2, start: 1.2, end: 2, text: "Two.", speaker: "A" },
      { id: 3, start: 2, end: 3, text: "Three.", speaker: "B" },
      { id: 4, start: 9, end: 10, text: "Four.", speaker: "B" },
    ];
    const text = formatTranscript(transcript(cues, { speakers: { A: "Ann" } }), "txt");
    expect(text).toBe("Ann: One. Two.\n\nB: Three.\n\nB: Four.\n");
  });

  it("writes milliseconds and one line a cue as TSV", () => {
    expect(formatTranscript(transcript([{ id: 1, start: 0.0004, end: 1.5, text: "a\tb\nc" }]), "tsv")).toBe("start\tend\ttext\n0\t1500\ta b c\n");
  });

  it("writes JSON with words", () => {
    const cue = { id: 9, start: 0, end: 2, text: "Hello there", words: [{ start: 0.1, end: 0.8, text: "Hello" }, { start: 1, end: 1.9, text: "there" }] };
    const parsed = JSON.parse(formatTranscript(transcript([cue]), "json"));
    expect(parsed.segments[0].words).toEqual([{ word: "Hello", start: 0.1, end: 0.8 }, { word: "there", start: 1, end: 1.9 }]);
    expect(parsed.text).toBe("Hello there");
  });

  it("writes a Word document whose XML is escaped", () => {
    const files = unzipSync(formatDocx(transcript([{ id: 1, start: 65, end: 66, text: "a & <b>\u0000" }])));
    const document = strFromU8(files["word/document.xml"] ?? new Uint8Array());
    expect(document).toContain("tale &lt;1&gt;.mp3");
    expect(document).toContain("a &amp; &lt;b&gt;</w:t>");
    expect(document).toContain("1:05");
  });
});
