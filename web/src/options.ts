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

/** A language, or an empty text if the model cannot be told it. */
export function fitLanguage(model: Model | undefined, language: string): string {
  const codes = model?.capabilities?.languages ?? [];
  return !codes.length || codes.includes(language) ? language : "";
}

/** Translation if it is wanted and the model can translate, else transcription. */
export function fitTask(model: Model | undefined, isTranslated: boolean): "transcribe" | "translate" {
  return isTranslated && model?.capabilities?.tasks?.includes("translate") ? "translate" : "transcribe";
}

/** The options for a model: those that it does not have are left out, because it would refuse the recording. */
export function chooseOptions(model: Model | undefined): TranscriptionOptions {
  const can = model?.capabilities;
  const task = fitTask(model, options.task.value === "translate");
  return {
    model: options.model.value,
    language: fitLanguage(model, options.language.value),
    task,
    prompt: can && !can.prompt ? "" : options.prompt.value,
    hotwords: can && !can.hotwords ? "" : options.hotwords.value,
    speakers: options.speakers.value && Boolean(can?.speakers),
    // Some models give no times for words of a translation.
    words: options.words.value && task === "transcribe" && givesWordTimes(model),
  };
}

/** Whether a model reports the times of words. */
export function givesWordTimes(model: Model | undefined): boolean {
  return Boolean(model?.capabilities?.timestamp_granularities?.includes("word"));
}
