import { describe, expect, it } from "vitest";
import { de } from "../src/i18n/de";
import { en } from "../src/i18n/en";

const listPlaces = (text: string) => (text.match(/\{\w+\}/g) ?? []).sort();

describe("German", () => {
  it("has every text, and its values", () => {
    for (const [key, text] of Object.entries(en)) {
      const translated = de[key as keyof typeof en];
      expect(translated, key).toBeDefined();
      expect(listPlaces(translated ?? ""), key).toEqual(listPlaces(text));
    }
  });
});
