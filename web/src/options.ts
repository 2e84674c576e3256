/** The settings of transcriptions, remembered in this browser. */

import type { Model } from "./api/models";
import type { TranscriptionOptions } from "./api/transcription";
import { isFlag, isText, rememberedSignal } from "./storage";

const isTask = (value: unknown): value is "transcribe" | "translate" => value === "transcribe" || value === "translate";

export const options = {
  model: rememberedSignal("model", "", isText),
  language: rememberedSignal("spokenLanguage", "", isText),
  task: rememberedSignal<"transcribe" | "translate">("task", "transcribe", isTask),
  prompt: rememberedSignal("prompt", "", isText),
  hotwords: rememberedSignal("hotwords", "", isText),
  words: rememberedSignal("words", true, isFlag),
  speakers: rememberedSignal("speakers", false, isFlag),
};

/** The options for a model: those that it does not have are left out, because it would refuse the recording. */
export function chooseOptions(model: Model | undefined): TranscriptionOptions {
  const can = model?.capabilities;
  const languages = can?.languages ?? [];
  const language = options.language.value;
  const task = can?.tasks?.includes("translate") ? options.task.value : "transcribe";
  return {
    model: options.model.value,
    language: !languages.length || languages.includes(language) ? language : "",
    task,
    prompt: can && !can.prompt ? "" : options.prompt.value,
    hotwords: can && !can.hotwords ? "" : options.hotwords.value,
    speakers: options.speakers.value && Boolean(can?.speakers),
    // Some models give no times for words of a translation.
    words: options.words.value && task === "transcribe" && Boolean(can?.timestamp_granularities?.includes("word")),
  };
}
