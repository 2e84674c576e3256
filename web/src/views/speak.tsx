import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError, describeError, request, requestJson } from "../api/client";
import { readBytes } from "../api/events";
import { may } from "../api/rights";
import { AudioStream } from "../audio-stream";
import { saveFile } from "../files";
import { nameLanguage, t } from "../i18n";
import { ErrorMessage } from "../parts/error-message";
import { isNumber, isText, rememberedSignal } from "../storage";
import type { View } from "./view";

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

/** Speech in the format that it was asked for. */
interface Speech {
  readonly address: string;
  readonly fileName: string;
  /** All of it; null while it arrives. */
  readonly blob: Blob | null;
  /** Seconds at which the player begins. */
  readonly startsAt: number;
}

const text = rememberedSignal("speakText", "", isText);
const voice = rememberedSignal("voice", "", isText);
const speed = rememberedSignal("speakSpeed", 1, isNumber);
const format = rememberedSignal<Format>("speakFormat", "mp3", isFormat);

/** The name of a voice among those of all models. */
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
      {voices.value?.length === 0 && <p>{t("speak.none")}</p>}
      {voices.value?.length ? <SpeechForm voices={voices.value} /> : <ErrorMessage text={error.value} />}
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
  const audio = useRef<HTMLAudioElement>(null);
  useEffect(
    () => () => {
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
    const type = FORMATS[format.value];
    const fileName = `speech.${format.value}`;
    let stream: AudioStream | null = null;
    try {
      const response = await requestSpeech(chosen, controller.signal);
      forget();
      if (AudioStream.supports(type)) {
        stream = new AudioStream(type);
        speech.value = { address: stream.address, fileName, blob: null, startsAt: 0 };
      }
      const parts: BlobPart[] = [];
      for await (const part of readBytes(response)) {
        parts.push(part);
        stream?.add(part);
      }
      const blob = new Blob(parts, { type });
      if (stream && !stream.isOverfull) speech.value = { address: stream.address, fileName, blob, startsAt: 0 };
      else {
        const startsAt = audio.current?.currentTime ?? 0;
        forget();
        speech.value = { address: URL.createObjectURL(blob), fileName, blob, startsAt };
      }
    } catch (failure) {
      if (controller.signal.aborted) forget();
      else error.value = describeError(failure);
    } finally {
      stream?.end(); // the part that arrived can be heard
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
      <ErrorMessage text={error.value} />
      {speech.value && (
        <div class="row wrap">
          <audio
            ref={audio}
            controls
            autoplay
            src={speech.value.address}
            aria-label={t("speak.result")}
            onLoadedMetadata={(event) => {
              if (speech.value?.startsAt) event.currentTarget.currentTime = speech.value.startsAt;
            }}
          />
          {speech.value.blob && (
            <button type="button" onClick={() => speech.value?.blob && saveFile(speech.value.fileName, speech.value.blob, speech.value.blob.type)}>
              {t("speak.download")}
            </button>
          )}
        </div>
      )}
    </form>
  );
}

function requestSpeech(chosen: Voice | undefined, signal: AbortSignal): Promise<Response> {
  return request("v1/audio/speech", {
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
