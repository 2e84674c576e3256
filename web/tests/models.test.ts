import { describe, expect, it } from "vitest";
import { listLanguages, listSpeechModels, type Model } from "../src/api/models";
import { chooseOptions, options } from "../src/options";

const WHISPER: Model = {
  id: "whisper",
  aliases: ["whisper-1"],
  capabilities: {
    audio_transcriptions: true,
    tasks: ["transcribe", "translate"],
    languages: ["de", "en"],
    timestamp_granularities: ["segment", "word"],
    prompt: true,
  },
};
const CHAT: Model = { id: "llama", capabilities: {} };

describe("models", () => {
  it("lists models that hear, and selectors of them", () => {
    const selector: Model = { id: "any", meta: { llamaswap: { type: "selector", targets: ["llama", "whisper-1"] } } };
    const other: Model = { id: "chats", meta: { llamaswap: { type: "selector", targets: ["llama"] } } };
    expect(listSpeechModels([WHISPER, CHAT, selector, other]).map((model) => model.id)).toEqual(["whisper", "any"]);
  });

  it("lets a model that accepts any language be told one", () => {
    expect(listLanguages(WHISPER)).toEqual(["de", "en"]);
    expect(listLanguages({ id: "proxy", capabilities: { audio_transcriptions: true, languages: [] } })).toContain("sv");
    expect(listLanguages(undefined)).toContain("de");
  });
});

describe("options", () => {
  it("leaves out what the model would refuse", () => {
    options.language.value = "fr";
    options.task.value = "translate";
    options.hotwords.value = "Eardrum";
    expect(chooseOptions(WHISPER)).toMatchObject({ language: "", task: "translate", hotwords: "", words: false, speakers: false });
    options.task.value = "transcribe";
    options.language.value = "de";
    expect(chooseOptions(WHISPER)).toMatchObject({ language: "de", task: "transcribe", words: true });
    expect(chooseOptions({ id: "moonshine", capabilities: { audio_transcriptions: true, tasks: ["transcribe"] } }).words).toBe(false);
  });
});
