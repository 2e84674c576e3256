/** The live recording: it goes on while other views are open. */

import { computed, signal } from "@preact/signals";
import { buildSocketAddress, buildSubprotocols } from "../api/client";
import { defaultModel, findModel, models, type Model } from "../api/models";
import { may, rights } from "../api/rights";
import { saveFile } from "../files";
import { formatDate, t } from "../i18n";
import { fitLanguage, fitTask, givesWordTimes } from "../options";
import { keepRecording } from "../recordings";
import { go } from "../router";
import { isFlag, isNumber, isText, rememberedSignal } from "../storage";
import { createTranscriptId, saveTranscript } from "../store";
import type { Cue, TranscriptInfo } from "../transcript/types";
import { CaptureError, openCapture, type Capture, type CaptureFault, type CaptureSource } from "./live-capture";
import { LiveSession, type LiveLine, type LivePartial, type LiveState } from "./live-session";

const isSource = (value: unknown): value is CaptureSource => value === "microphone" || value === "tab";

export const source = rememberedSignal<CaptureSource>("live.source", "microphone", isSource);
export const deviceId = rememberedSignal("live.device", "", isText);
export const model = rememberedSignal("live.model", "", isText);
export const language = rememberedSignal("live.language", "", isText);
export const isTranslated = rememberedSignal("live.translate", false, isFlag);
/** Of the full-screen captions, in hundredths of the longer side of the screen. */
export const captionSize = rememberedSignal("live.size", 5, isNumber);

export type LiveProblem = { readonly fault: CaptureFault | "no-server" | "no-right" } | { readonly message: string };

export const lines = signal<readonly LiveLine[]>([]);
export const partial = signal<LivePartial | null>(null);
export const state = signal<LiveState | "idle">("idle");
export const problem = signal<LiveProblem | null>(null);
/** The loudest sample of the last piece, from 0 to 1. */
export const level = signal(0);
export const isSaved = signal(true);
export const isRunning = computed(() => state.value !== "idle" && state.value !== "closed");

let capture: Capture | null = null;
let session: LiveSession | null = null;
let wakeLock: WakeLockSentinel | null = null;
/** The audio so far, or null if its parts have different rates. */
let recorded: { rate: number; parts: BlobPart[] } | null = null;
let fresh: ArrayBuffer[] = [];
let recordedSeconds = 0;
/** The settings of the last start, with the model that answered. */
let used: Pick<TranscriptInfo, "model" | "language" | "task"> = { model: "", language: "", task: "transcribe" };
/** The number of starts and stops: a microphone that the user allows after a stop is not used. */
let attempt = 0;

/** Pieces after which audio is handed to the browser as a blob, which it may keep on disk: a minute. */
const BLOB_PIECES = 600;

/** Whether leaving the page would lose text or audio. */
export function isLiveTextUnsaved(): boolean {
  return isRunning.value || !isSaved.value;
}

/** The model that the settings name. */
export function findLiveModel(): Model | undefined {
  return findModel(models.value, model.value, defaultModel.value);
}

/** Begin, or go on after a stop. */
export async function start(): Promise<void> {
  const own = (attempt += 1);
  // The server would refuse the connection, and browsers do not tell why.
  if (rights.value && !may("transcribe")) {
    problem.value = { fault: "no-right" };
    return;
  }
  problem.value = null;
  state.value = "connecting";
  try {
    const opened = await openCapture({
      source: source.value,
      deviceId: deviceId.value,
      onAudio: take,
      onEnd: () => {
        problem.value = { fault: "ended" };
        stop();
      },
    });
    if (own !== attempt) return opened.close();
    capture = opened;
  } catch (error) {
    if (own !== attempt) return;
    problem.value = error instanceof CaptureError ? { fault: error.fault } : { message: String(error) };
    state.value = "closed";
    return;
  }
  if (!recordedSeconds) recorded = { rate: capture.rate, parts: [] };
  else if (recorded?.rate !== capture.rate) recorded = null;
  const chosen = findLiveModel();
  used = { model: model.value, language: fitLanguage(chosen, language.value), task: fitTask(chosen, isTranslated.value) };
  session = new LiveSession(
    {
      ...used,
      address: buildSocketAddress("v1/audio/transcriptions/stream"),
      protocols: buildSubprotocols("eardrum"),
      rate: capture.rate,
      startsAt: recordedSeconds,
      // Some models give no times for words of a translation.
      words: used.task === "transcribe" && givesWordTimes(chosen),
    },
    {
      onLine: (line) => {
        lines.value = [...lines.value, line];
        isSaved.value = false;
      },
      onPartial: (now) => (partial.value = now),
      onReady: (id) => {
        used = { ...used, model: id };
        if (problem.value && "message" in problem.value) problem.value = null;
      },
      onState: follow,
      onError: (message) => (problem.value = message ? { message } : { fault: "no-server" }),
    },
  );
  try {
    const lock = (await navigator.wakeLock?.request("screen")) ?? null;
    if (isRunning.value) wakeLock = lock;
    else void lock?.release();
  } catch {
    // The screen may go dark: the text goes on.
  }
}

/** End the audio; the last words still come. */
export function stop(): void {
  attempt += 1;
  capture?.close();
  if (session) session.finish();
  else state.value = "closed";
}

/** Forget the text and the audio. */
export function clear(): void {
  lines.value = [];
  partial.value = null;
  problem.value = null;
  recorded = null;
  fresh = [];
  recordedSeconds = 0;
  isSaved.value = true;
}

/** Put the text into the history, keep the audio for the player, and open both. */
export async function save(): Promise<void> {
  const audio = buildRecording();
  const name = nameRecording(audio);
  const id = createTranscriptId();
  if (audio) keepRecording(id, new File([audio], name, { type: audio.type }));
  const cues = lines.value.map((line, index): Cue => ({
    id: index + 1,
    start: line.start,
    end: line.end,
    text: line.text,
    ...(line.words.length ? { words: line.words.map(({ word, start, end }) => ({ text: word.trim(), start, end })) } : {}),
  }));
  await saveTranscript({
    ...used,
    id,
    name,
    size: audio?.size ?? 0,
    created: Date.now(),
    duration: recordedSeconds,
    excerpt: "",
    warnings: [],
    cues,
  });
  isSaved.value = true;
  go("read", id);
}

/** Whether the audio can be saved. */
export function hasAudio(): boolean {
  return recorded !== null;
}

/** Let the browser save the audio as a file. */
export function saveAudio(): void {
  const audio = buildRecording();
  if (audio) saveFile(nameRecording(audio), audio, audio.type);
}

function nameRecording(audio: Blob | null): string {
  return t("live.name", { date: formatDate(Date.now()) }) + (audio ? ".wav" : "");
}

/** The audio as a WAV file; null if there is none. */
function buildRecording(): Blob | null {
  if (!recorded) return null;
  const parts = [...recorded.parts, ...fresh];
  const size = parts.reduce((sum, part) => sum + (part instanceof Blob ? part.size : (part as ArrayBuffer).byteLength), 0);
  return new Blob([buildWavHeader(recorded.rate, size), ...parts], { type: "audio/wav" });
}

function follow(now: LiveState): void {
  state.value = now;
  if (now !== "closed") return;
  capture?.close();
  capture = session = null;
  partial.value = null;
  level.value = 0;
  void wakeLock?.release();
  wakeLock = null;
}

function take(piece: ArrayBuffer): void {
  if (!capture) return;
  session?.feed(piece);
  recordedSeconds += piece.byteLength / 2 / capture.rate;
  const samples = new Int16Array(piece);
  level.value = samples.reduce((loudest, sample) => Math.max(loudest, Math.abs(sample)), 0) / 32768;
  if (!recorded) return;
  fresh.push(piece);
  if (fresh.length >= BLOB_PIECES) {
    recorded.parts.push(new Blob(fresh));
    fresh = [];
  }
}

function buildWavHeader(rate: number, size: number): ArrayBuffer {
  const header = new DataView(new ArrayBuffer(44));
  const write = (at: number, text: string) => [...text].forEach((letter, n) => header.setUint8(at + n, letter.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, 36 + size, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, rate * 2, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  write(36, "data");
  header.setUint32(40, size, true);
  return header.buffer as ArrayBuffer;
}
