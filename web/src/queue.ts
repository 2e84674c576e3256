/** The queue of recordings: two at a time, so that one is sent while the other is decoded. A broken file ends alone. */

import { signal, type Signal } from "@preact/signals";
import { ApiError, buildAddress, describeError, isTemporary } from "./api/client";
import { transcribe, type TranscriptionOptions, type TranscriptionResult } from "./api/transcription";
import { keepRecording, measureDuration } from "./recordings";
import { createTranscriptId, saveTranscript } from "./store";
import type { Cue, Transcript } from "./transcript/types";

const MAX_ACTIVE = 2;
/** Attempts for a recording whose connection broke, or for which the server had no room. */
const MAX_ATTEMPTS = 5;
const RETRY_MS = 2000;
/** The longest wait that a server can ask for. */
const MAX_RETRY_MS = 600_000;

export type QueueState = "waiting" | "sending" | "decoding" | "offline" | "done" | "failed" | "cancelled";

export interface QueueItem {
  readonly id: number;
  readonly file: File;
  readonly options: TranscriptionOptions;
  readonly state: Signal<QueueState>;
  /** The part of the file that is sent, 0 to 1. */
  readonly sent: Signal<number>;
  /** Seconds that are decoded. */
  readonly decoded: Signal<number>;
  /** Seconds of the recording; 0 if the browser cannot tell. */
  readonly duration: Signal<number>;
  readonly text: Signal<string>;
  readonly error: Signal<string>;
  /** The id of the transcript, once it is there. */
  readonly transcript: Signal<string>;
  abort: AbortController;
}

export const queue = signal<readonly QueueItem[]>([]);
let lastId = 0;

export function isActive(item: QueueItem): boolean {
  return ["sending", "decoding", "offline"].includes(item.state.value);
}

/** Whether a recording is done, failed or cancelled. */
export function isOver(item: QueueItem): boolean {
  return ["done", "failed", "cancelled"].includes(item.state.value);
}

/** Whether recordings wait or are being transcribed. */
export function isQueueBusy(): boolean {
  return !queue.value.every(isOver);
}

/** Add recordings to the end of the queue. */
export function addToQueue(files: readonly File[], options: TranscriptionOptions): void {
  const items = files.map((file) => ({
    id: ++lastId,
    file,
    options,
    state: signal<QueueState>("waiting"),
    sent: signal(0),
    decoded: signal(0),
    duration: signal(0),
    text: signal(""),
    error: signal(""),
    transcript: signal(""),
    abort: new AbortController(),
  }));
  queue.value = [...queue.value, ...items];
  startWaiting();
}

/** End a recording's transcription, or take it out of the queue. */
export function cancelItem(item: QueueItem): void {
  if (item.state.value === "waiting") item.state.value = "cancelled";
  else item.abort.abort();
}

/** Transcribe a recording again that failed or was cancelled. */
export function retryItem(item: QueueItem): void {
  item.abort = new AbortController();
  item.error.value = "";
  item.state.value = "waiting";
  startWaiting();
}

/** Remove recordings that are done, failed or cancelled from the list. Transcripts stay in the history. */
export function clearFinished(): void {
  queue.value = queue.value.filter((item) => !isOver(item));
}

function startWaiting(): void {
  let free = MAX_ACTIVE - queue.value.filter(isActive).length;
  for (const item of queue.value) {
    if (free <= 0) break;
    if (item.state.value !== "waiting") continue;
    free -= 1;
    item.state.value = "sending";
    void runItem(item).finally(startWaiting);
  }
}

async function runItem(item: QueueItem): Promise<void> {
  if (!item.duration.value) void measureDuration(item.file).then((seconds) => (item.duration.value = seconds));
  try {
    const transcript = buildTranscript(item, await transcribePatiently(item));
    keepRecording(transcript.id, item.file);
    await saveTranscript(transcript);
    item.transcript.value = transcript.id;
    item.state.value = "done";
  } catch (error) {
    const isCancelled = item.abort.signal.aborted;
    item.error.value = isCancelled ? "" : describeError(error);
    item.state.value = isCancelled ? "cancelled" : "failed";
  }
}

/** Transcribe, again if the connection broke, the server has no room or restarts, or a proxy cannot reach it. */
async function transcribePatiently(item: QueueItem): Promise<TranscriptionResult> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await transcribeItem(item);
    } catch (error) {
      if (!(error instanceof ApiError) || !isTemporary(error) || attempt >= MAX_ATTEMPTS) throw error;
      item.error.value = error.message;
      item.state.value = "offline";
      await waitForServer(item.abort.signal, Math.min(Math.max(RETRY_MS, error.retryAfter * 1000), MAX_RETRY_MS));
    }
  }
}

function transcribeItem(item: QueueItem): Promise<TranscriptionResult> {
  const restart = () => {
    item.state.value = "sending";
    item.error.value = item.text.value = "";
    item.sent.value = item.decoded.value = 0;
  };
  restart();
  return transcribe(
    item.file,
    item.options,
    {
      onUpload: (sent, total) => {
        item.sent.value = total ? sent / total : 1;
        if (sent >= total) item.state.value = "decoding";
      },
      onText: ({ delta, end }) => {
        item.text.value += delta;
        if (end !== undefined) item.decoded.value = Math.max(item.decoded.value, end);
      },
      onRestart: restart,
    },
    item.abort.signal,
  );
}

/** Wait for some time, and then until the server answers. */
async function waitForServer(signal: AbortSignal, pauseMs: number): Promise<void> {
  for (let pause = pauseMs; ; pause = RETRY_MS) {
    await sleep(pause, signal);
    const response = await fetch(buildAddress("health"), { signal, cache: "no-store" }).catch(() => null);
    if (response?.ok) return;
  }
}

function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal.addEventListener("abort", abort, { once: true });
  });
}

/** The transcript of a recording that was transcribed. */
function buildTranscript(item: QueueItem, result: TranscriptionResult): Transcript {
  const last = result.segments.at(-1)?.end ?? 0;
  const cues = result.segments.map((segment, index): Cue => ({
    id: index + 1,
    start: segment.start,
    end: Math.max(segment.start, segment.end),
    text: segment.text.trim(),
    ...(segment.words?.length ? { words: segment.words.map(({ word, start, end }) => ({ text: word.trim(), start, end })) } : {}),
    ...(segment.speaker ? { speaker: segment.speaker } : {}),
  }));
  const duration = result.duration || item.duration.value || last;
  // A server behind the model may report text without times.
  const untimed = result.text.trim() ? [{ id: 1, start: 0, end: duration, text: result.text.trim() }] : [];
  return {
    id: createTranscriptId(),
    name: item.file.name,
    size: item.file.size,
    created: Date.now(),
    model: result.model || item.options.model,
    language: result.language || item.options.language,
    task: item.options.task,
    duration,
    excerpt: "",
    warnings: result.warnings ?? [],
    cues: cues.length ? cues : untimed,
  };
}
