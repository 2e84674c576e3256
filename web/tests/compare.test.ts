import { describe, expect, it } from "vitest";
import { compareWords, placeBeside } from "../src/transcript/compare";
import type { Cue } from "../src/transcript/types";

const cue = (id: number, start: number, end: number, text: string): Cue => ({ id, start, end, text });

describe("compareWords", () => {
  const own = [cue(1, 0, 2, "It was the best of"), cue(2, 2, 4, "times, it was the worst.")];

  it("marks the words that differ, and puts each beside the cue of its neighbours", () => {
    const found = compareWords(own, [cue(9, 0, 4, "It was the beast of times it was worst")]);
    expect(found.get(1)).toEqual([
      { text: "It was the", isDifferent: false },
      { text: "beast", isDifferent: true },
      { text: "of", isDifferent: false },
    ]);
    expect(found.get(2)).toEqual([{ text: "times it was worst", isDifferent: false }]);
  });

  it("compares long texts in blocks, and nothing is lost", () => {
    const words = Array.from({ length: 1000 }, (_, index) => `w${index}`);
    const cues = Array.from({ length: 100 }, (_, index) => cue(index + 1, index, index + 1, words.slice(index * 10, index * 10 + 10).join(" ")));
    const found = compareWords(cues, [cue(1, 0, 100, words.join(" "))]);
    expect(Array.from(found.values()).flat().map((part) => part.text).join(" ")).toBe(words.join(" "));
    const wrong = Array.from(found.values()).flat().filter((part) => part.isDifferent);
    expect(wrong).toEqual([]);
  });

  it("puts text beside nothing where there is no text", () => {
    expect(compareWords([], [cue(1, 0, 1, "a")]).size).toBe(0);
    expect(compareWords(own, []).size).toBe(0);
  });
});

describe("placeBeside", () => {
  it("puts whole cues beside those that are spoken at the time", () => {
    const found = placeBeside([cue(5, 0, 2, "Eins."), cue(6, 2, 4, "Zwei.")], [cue(1, 0, 1.8, "One."), cue(2, 1.9, 3, "Two."), cue(3, 3, 4, "More.")]);
    expect(found.get(5)).toEqual([{ text: "One.", isDifferent: false }]);
    expect(found.get(6)).toEqual([{ text: "Two. More.", isDifferent: false }]);
  });
});
