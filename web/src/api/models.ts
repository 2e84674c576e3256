/** The server's models. */

import { signal } from "@preact/signals";
import { t } from "../i18n";
import { describeError, encodePath, request, requestJson } from "./client";
import { readLines } from "./events";

export interface ModelCapabilities {
  readonly audio_transcriptions?: boolean;
  readonly audio_speech?: boolean;
  readonly tasks?: readonly string[];
  readonly languages?: readonly string[];
  readonly timestamp_granularities?: readonly string[];
  readonly detects_language?: boolean;
  readonly prompt?: boolean;
  readonly hotwords?: boolean;
  readonly speakers?: boolean;
}

export interface Model {
  readonly id: string;
  readonly name?: string;
  readonly state?: string;
  readonly engine?: string;
  readonly aliases?: readonly string[];
  readonly capabilities?: ModelCapabilities;
  /** The kind of the name: `model`, `alias`, `selector`, `profile` or `peer`; a selector names its targets. */
  readonly meta?: { readonly llamaswap?: { readonly type?: string; readonly targets?: readonly string[] } };
}

export const models = signal<readonly Model[]>([]);
export const defaultModel = signal("");
export const modelsError = signal("");

let lastAsked = 0;
let lastAnswered = 0;

/** Read the list of models, and which one is the default. Several parts of the page do so: an answer that comes after that of a
 * later request is left out. */
export async function loadModels(signal?: AbortSignal): Promise<void> {
  const init = signal ? { signal } : {};
  const own = (lastAsked += 1);
  try {
    const [list, health] = await Promise.all([
      requestJson<{ data: Model[] }>("v1/models", init),
      requestJson<{ default_model: string }>("health", init),
    ]);
    if (own < lastAnswered) return;
    lastAnswered = own;
    models.value = list.data;
    defaultModel.value = health.default_model;
    modelsError.value = "";
  } catch (error) {
    if (own < lastAnswered || (error instanceof DOMException && error.name === "AbortError")) return;
    modelsError.value = describeError(error);
  }
}

/** Models that turn speech into text, and selectors of such models. */
export function listSpeechModels(all: readonly Model[]): Model[] {
  const hears = (model: Model | undefined) => Boolean(model?.capabilities?.audio_transcriptions);
  return all.filter((model) => hears(model) || model.meta?.llamaswap?.targets?.some((name) => hears(findModel(all, name, ""))));
}

/** Languages of Whisper, for models that accept any language. */
const COMMON_LANGUAGES =
  "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it ja jv ka " +
  "kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so sq sr su sv sw " +
  "ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh";

/** The languages that a model can be told to expect. */
export function listLanguages(model: Model | undefined): readonly string[] {
  const codes = model?.capabilities?.languages ?? [];
  return codes.length ? codes : COMMON_LANGUAGES.split(" ");
}

/** The model that a name stands for; the default one for an empty name. */
export function findModel(all: readonly Model[], name: string, fallback: string): Model | undefined {
  const wanted = name || fallback;
  return all.find((model) => model.id === wanted) ?? all.find((model) => model.aliases?.includes(wanted));
}

/** A step of a download. */
export interface PullStep {
  readonly status: string;
  readonly file?: string;
  readonly completed?: number;
  readonly total?: number | null;
  readonly error?: string;
}

/** Download a model, and report each step.
 *
 * @throws ApiError if the name is unknown; Error with the server's sentence if the download fails.
 */
export async function pullModel(name: string, onStep: (step: PullStep) => void, signal: AbortSignal): Promise<void> {
  const response = await request(`api/pull/${encodePath(name)}`, { method: "POST", signal });
  let last: PullStep | undefined;
  for await (const line of readLines(response)) {
    last = JSON.parse(line) as PullStep;
    onStep(last);
  }
  if (last?.status !== "success") throw new Error(last?.error ?? t("error.download"));
}
