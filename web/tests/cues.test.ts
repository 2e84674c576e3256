import { describe, expect, it } from "vitest";
import { parseClock, formatExact } from "../src/transcript/clock";
import { findCueAt, findText, findWordAtOffset, insertCue, mergeCues, removeCue, replaceText, setText, setTimes, splitCue } from "../src/transcript/cues";
import { recordEdit, redoEdit, startHistory, undoEdit } from "../src/transcript/undo";
import { joinTexts, splitWords, timeWords } from "../src/transcript/words";
import type { Cue } from "../src/transcript/types";

const HEARD: Cue = {
  id: 1,
  start: 10,
  end: 14,
  text: "The quick brown fox.",
  words: [
    { start: 10, end: 10.4, text: "The" },
    { start: 10.5, end: 11, text: "quick" },
    { start: 12, end: 12.6, text: "brown" },
    { start: 13, end: 14, text: "fox." },
  ],
};
const PLAIN: Cue = { id: 2, start: 20, end: 24, text: "aaa bbb" };

describe("words", () => {
  it("keeps the times of words that an edit did not touch", () => {
    const edited = timeWords({ ...HEARD, text: "The slow red-brown fox." });
    expect(edited.map((word) => word.text)).toEqual(["The", "slow", "red-brown", "fox."]);
    expect(edited[0]).toMatchObject({ start: 10, end: 10.4 });
    expect(edited[1]?.start).toBe(10.4);
    expect(edited[2]?.end).toBe(13);
    expect(edited[3]).toMatchObject({ start: 13, end: 14, offset: 19 });
  });

  it("shares time out by length where the model gave no words", () => {
    const words = timeWords(PLAIN);
    expect(words.map(({ start, end }) => [start, end])).toEqual([[20, 22], [22, 24]]);
  });

  it("divides scripts without spaces, and joins them without", () => {
    expect(splitWords("今日は 天気。").map((word) => word.text).join("|")).toBe("今日|は|天気。");
    expect(joinTexts(["今日は。", "天気", ""])).toBe("今日は。天気");
    expect(joinTexts(["one ", "", " two", "three"])).toBe("one two three");
  });

  it("finds the word at a place in the text", () => {
    const words = timeWords(HEARD);
    expect(findWordAtOffset(words, 5)?.text).toBe("quick");
    expect(findWordAtOffset(words, 9)?.text).toBe("brown");
    expect(findWordAtOffset(words, 99)?.text).toBe("fox.");
  });
});

describe("edits", () => {
  it("splits at a word's time, and merging brings the same back", () => {
    const split = splitCue([HEARD, PLAIN], 1, 10);
    expect(split.map(({ id, start, end, text }) => [id, start, end, text])).toEqual([
      [1, 10, 11, "The quick"],
      [3, 12, 14, "brown fox."],
      [2, 20, 24, "aaa bbb"],
    ]);
    const merged = mergeCues(split, 1);
    expect(merged[0]).toEqual(HEARD);
  });

  it("splits within a word at a time within the word", () => {
    const [one, other] = splitCue([PLAIN], 2, 6);
    expect([one?.text, other?.text]).toEqual(["aaa bb", "b"]);
    expect(one?.end).toBeCloseTo(22 + (2 / 3) * 2);
    expect(other?.start).toBe(one?.end);
  });

  it("leaves no empty part, and no gap at the end", () => {
    expect(splitCue([PLAIN], 2, 0)).toHaveLength(1);
    expect(splitCue([PLAIN], 2, 7)).toHaveLength(1);
    expect(mergeCues([PLAIN], 2)).toHaveLength(1);
  });

  it("sets times, keeps the order, and clamps words", () => {
    const [first, second] = setTimes([HEARD, PLAIN], 1, 30, 29);
    expect(first?.id).toBe(2);
    expect(second?.start).toBe(30);
    expect(second?.end).toBeGreaterThan(30);
    expect(second?.words?.every((word) => word.start >= 30)).toBe(true);
  });

  it("inserts between two cues and removes", () => {
    const cues = insertCue([HEARD, PLAIN], 1);
    expect(cues[1]).toMatchObject({ id: 3, start: 14, end: 16, text: "" });
    expect(removeCue(cues, 3)).toEqual([HEARD, PLAIN]);
  });

  it("finds and replaces text as it is written, whatever its case", () => {
    expect(findText([HEARD, PLAIN], "B")).toHaveLength(4);
    expect(findText([HEARD], "x.")).toEqual([{ cue: 1, start: 18, end: 20 }]);
    expect(findText([HEARD], "(")).toEqual([]);
    expect(replaceText([PLAIN], "BBB", "$&c")[0]?.text).toBe("aaa $&c");
  });

  it("finds the cue at a time", () => {
    expect([9, 10, 15, 20, 99].map((time) => findCueAt([HEARD, PLAIN], time))).toEqual([-1, 0, 0, 1, 1]);
  });
});

describe("undo", () => {
  it("undoes and redoes edits, and a new edit ends the redo", () => {
    let history = startHistory<readonly Cue[]>([PLAIN]);
    history = recordEdit(history, setText(history.present, 2, "x"));
    history = recordEdit(history, setText(history.present, 2, "x"));
    expect(history.past).toHaveLength(1);
    history = undoEdit(history);
    expect(history.present[0]?.text).toBe("aaa bbb");
    expect(redoEdit(history).present[0]?.text).toBe("x");
    history = recordEdit(history, setText(history.present, 2, "y"));
    expect(redoEdit(history)).toBe(history);
  });
});

describe("clock", () => {
  it("parses what it writes", () => {
    for (const time of [0, 5.25, 65.5, 3661.01]) expect(parseClock(formatExact(time))).toBeCloseTo(time);
    expect(parseClock("1:2:3,5")).toBe(3723.5);
    expect(parseClock("1:x")).toBeUndefined();
    expect(parseClock("")).toBeUndefined();
  });
});
