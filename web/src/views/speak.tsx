import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError, request, requestJson } from "../api/client";
import { may } from "../api/rights";
import { saveFile } from "../files";
import { nameLanguage, t } from "../i18n";
import { isNumber, isText, rememberedSignal } from "../storage";
import type { View } from "./list";

/** A voice as `/v1/audio/voices` lists it. */
interface Voice {
  readonly id: string;
  readonly name?: string;
  readonly model?: string;
  readonly language?: string;
}

const FORMATS = { mp3: "audio/mpeg", wav: "audio/wav", flac: "audio/flac", opus: "audio/ogg", aac: "audio/aac" } as const;
type Format = keyof typeof FORMATS;
const isFormat = (value: unknown): value is Format => typeof value === "string" && value in FORMATS;

/** Speech that arrived, in the format that it was asked for. */
interface Speech {
  readonly blob: Blob;
  readonly address: string;
  readonly fileName: string;
}

const text = rememberedSignal("speakText", "", isText);
const voice = rememberedSignal("voice", "", isText);
const speed = rememberedSignal("speakSpeed", 1, isNumber);
const format = rememberedSignal<Format>("speakFormat", "mp3", isFormat);

/** What names a voice among those of all models. */
const identify = (one: Voice) => `${one.model ?? ""}/${one.id}`;

function Speak() {
  const voices = useSignal<readonly Voice[] | null>(null);
  const error = useSignal("");
  useEffect(() => {
    const loading = new AbortController();
    requestJson<{ voices: Voice[] }>("v1/audio/voices", { signal: loading.signal })
      .then((list) => (voices.value = list.voices))
      .catch((failure: Error) => {
        if (loading.signal.aborted) return;
        // Without a model that speaks, the list of voices asks for the name of another server's model.
        if (failure instanceof ApiError && failure.status === 400) voices.value = [];
        else error.value = failure.message;
      });
    return () => loading.abort();
  }, []);
  return (
    <div class="page">
      <h1>{t("speak.heading")}</h1>
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
      {voices.value?.length === 0 && <p>{t("speak.none")}</p>}
      {voices.value && voices.value.length > 0 && <SpeechForm voices={voices.value} />}
    </div>
  );
}

function SpeechForm({ voices }: { voices: readonly Voice[] }) {
  const speech = useSignal<Speech | null>(null);
  const error = useSignal("");
  const working = useSignal<AbortController | null>(null);
  const forget = () => {
    if (speech.peek()) URL.revokeObjectURL(speech.peek()?.address ?? "");
    speech.value = null;
  };
  const isGone = useRef(false);
  useEffect(
    () => () => {
      isGone.current = true;
      working.peek()?.abort();
      forget();
    },
    [],
  );
  const chosen = voices.find((one) => identify(one) === voice.value) ?? voices[0];
  const submit = async (event: Event) => {
    event.preventDefault();
    if (working.value || !text.value.trim()) return;
    const controller = new AbortController();
    working.value = controller;
    error.value = "";
    const fileName = `speech.${format.value}`;
    try {
      const blob = await fetchSpeech(chosen, controller.signal);
      forget();
      if (!isGone.current) speech.value = { blob, address: URL.createObjectURL(blob), fileName };
    } catch (failure) {
      if (!controller.signal.aborted) error.value = failure instanceof Error ? failure.message : String(failure);
    } finally {
      working.value = null;
    }
  };
  return (
    <form class="panel settings" onSubmit={submit}>
      <label class="field wide">
        {t("speak.text")}
        <textarea rows={8} dir="auto" value={text.value} onInput={(event) => (text.value = event.currentTarget.value)} />
      </label>
      <SpeechSettings voices={voices} chosen={chosen} />
      <div class="row">
        <button type="submit" class="primary" disabled={!text.value.trim() || working.value !== null}>
          {t(working.value ? "speak.working" : "speak.start")}
        </button>
        {working.value && (
          <button type="button" onClick={() => working.value?.abort()}>
            {t("cancel")}
          </button>
        )}
      </div>
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
      {speech.value && (
        <div class="row wrap">
          <audio controls autoplay src={speech.value.address} aria-label={t("speak.result")} />
          <button type="button" onClick={() => speech.value && saveFile(speech.value.fileName, speech.value.blob, speech.value.blob.type)}>
            {t("speak.download")}
          </button>
        </div>
      )}
    </form>
  );
}

async function fetchSpeech(chosen: Voice | undefined, signal: AbortSignal): Promise<Blob> {
  const type = FORMATS[format.value];
  const response = await request("v1/audio/speech", {
    method: "POST",
    signal,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      input: text.value,
      voice: chosen?.id,
      model: chosen?.model,
      speed: speed.value,
      response_format: format.value,
    }),
  });
  return new Blob([await response.arrayBuffer()], { type });
}

function SpeechSettings({ voices, chosen }: { voices: readonly Voice[]; chosen: Voice | undefined }) {
  return (
    <div class="fields">
      <label class="field">
        {t("speak.voice")}
        <select value={chosen && identify(chosen)} onChange={(event) => (voice.value = event.currentTarget.value)}>
          {voices.map((one) => (
            <option key={identify(one)} value={identify(one)}>
              {[one.name ?? one.id, one.language && nameLanguage(one.language), one.model].filter(Boolean).join(" · ")}
            </option>
          ))}
        </select>
      </label>
      <label class="field narrow">
        {t("speak.speed")}
        <input
          type="number"
          min={0.25}
          max={4}
          step={0.05}
          value={speed.value}
          onChange={(event) => (speed.value = Math.min(4, Math.max(0.25, event.currentTarget.valueAsNumber || 1)))}
        />
      </label>
      <label class="field narrow">
        {t("speak.format")}
        <select value={format.value} onChange={(event) => (format.value = event.currentTarget.value as Format)}>
          {Object.keys(FORMATS).map((one) => (
            <option key={one} value={one}>
              {one.toUpperCase()}
            </option>
          ))}
        </select>
      </label>
    </div>
  );
}

export const speak: View = {
  name: "speak",
  title: "speak.title",
  component: Speak,
  isInNavigation: true,
  isVisible: () => may("speak"),
};
