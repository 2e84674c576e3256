/** Sends a recording and reports its upload, and its text as it is decoded.
 *
 * XMLHttpRequest, because fetch does not report the progress of an upload.
 */

import { t } from "../i18n";
import { ApiError, apiKey, buildAddress, buildKeyHeaders, obtainKey, parseError } from "./client";
import { EventParser, type ServerEvent } from "./events";

export interface TranscriptionOptions {
  readonly model: string;
  readonly language: string;
  readonly task: "transcribe" | "translate";
  readonly prompt: string;
  readonly hotwords: string;
  readonly words: boolean;
  readonly speakers: boolean;
}

/** Text that was decoded. Times are missing if the model's server does not report them. */
export interface TextDelta {
  readonly delta: string;
  readonly start?: number;
  readonly end?: number;
}

export interface ApiWord {
  readonly word: string;
  readonly start: number;
  readonly end: number;
}

export interface ApiSegment {
  readonly start: number;
  readonly end: number;
  readonly text: string;
  readonly words?: readonly ApiWord[];
  readonly speaker?: string;
}

export interface TranscriptionResult {
  readonly text: string;
  readonly segments: readonly ApiSegment[];
  readonly language?: string;
  readonly duration?: number;
  readonly model?: string;
  readonly warnings?: readonly string[];
}

export interface TranscriptionHandlers {
  /** Called with the bytes that are sent, and all of them. */
  onUpload(sent: number, total: number): void;
  onText(delta: TextDelta): void;
  /** Called when the recording is sent again from its beginning. */
  onRestart(): void;
}

/** Transcribe a recording. Asks for a key as `request` does.
 *
 * @throws ApiError if the server refuses the recording or does not answer; DOMException `AbortError` if `signal` ends it.
 */
export async function transcribe(
  file: File,
  options: TranscriptionOptions,
  handlers: TranscriptionHandlers,
  signal: AbortSignal,
): Promise<TranscriptionResult> {
  for (;;) {
    const sentKey = apiKey.value;
    try {
      return await sendRecording(file, options, handlers, signal);
    } catch (error) {
      if (!(error instanceof ApiError) || !(await obtainKey(error, sentKey))) throw error;
      handlers.onRestart();
    }
  }
}

/** The form. The fields stand before the file, so that decoding begins while it is being sent. */
export function buildForm(file: File, options: TranscriptionOptions): FormData {
  const form = new FormData();
  const fields = {
    model: options.model,
    stream: "true",
    language: options.language,
    prompt: options.prompt.trim(),
    hotwords: options.hotwords.trim(),
    diarize: options.speakers ? "true" : "",
    // Words have times in this format only.
    response_format: options.words ? "verbose_json" : "",
    "timestamp_granularities[]": options.words ? "word" : "",
  };
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  form.append("file", file, file.name);
  return form;
}

function sendRecording(
  file: File,
  options: TranscriptionOptions,
  handlers: TranscriptionHandlers,
  signal: AbortSignal,
): Promise<TranscriptionResult> {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    const stream = new TranscriptStream(handlers.onText);
    const abort = () => xhr.abort();
    signal.throwIfAborted();
    signal.addEventListener("abort", abort);
    xhr.upload.onprogress = (event) => handlers.onUpload(event.loaded, event.total);
    xhr.upload.onload = (event) => handlers.onUpload(event.total, event.total);
    xhr.onprogress = () => {
      if (xhr.status === 200) stream.read(xhr.responseText);
    };
    xhr.onloadend = () => signal.removeEventListener("abort", abort);
    xhr.onabort = () => reject(new DOMException("Cancelled", "AbortError"));
    xhr.onerror = () => reject(stream.error ?? new ApiError(t("error.connectionLost"), 0));
    xhr.onload = () => {
      if (xhr.status !== 200) return reject(parseError(xhr.status, xhr.responseText, xhr.getResponseHeader("retry-after")));
      stream.read(xhr.responseText);
      if (stream.result) resolve(stream.result);
      else if (xhr.getResponseHeader("content-type")?.startsWith("text/html")) reject(new ApiError(t("error.foreign"), xhr.status));
      else reject(stream.error ?? new ApiError(t("error.incomplete"), 0));
    };
    xhr.open("POST", buildAddress(options.task === "translate" ? "v1/audio/translations" : "v1/audio/transcriptions"));
    for (const [name, value] of Object.entries(buildKeyHeaders())) xhr.setRequestHeader(name, value);
    xhr.send(buildForm(file, options));
  });
}

/** Reads the events of one transcription from the text that arrived so far. */
export class TranscriptStream {
  result: TranscriptionResult | null = null;
  error: ApiError | null = null;
  #parser = new EventParser();
  #read = 0;

  constructor(private readonly onText: (delta: TextDelta) => void) {}

  read(text: string): void {
    const events = this.#parser.feed(text.slice(this.#read));
    this.#read = text.length;
    events.forEach((event) => this.#readEvent(event));
  }

  #readEvent(event: ServerEvent): void {
    if (event.event === "error") {
      this.error = parseError(200, event.data);
      return;
    }
    const data = JSON.parse(event.data) as { type: string } & TextDelta & TranscriptionResult;
    if (data.type === "transcript.text.delta") this.onText(data);
    if (data.type === "transcript.text.done") this.result = { ...data, segments: data.segments ?? [] };
  }
}
