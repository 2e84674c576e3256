/** A live session at the server: audio goes up, lines of text come back. A lost connection is opened again. */

export interface LiveWord {
  word: string;
  start: number;
  end: number;
}

/** One utterance. Times are seconds since the recording began. */
export interface LiveLine {
  key: string;
  start: number;
  end: number;
  text: string;
  /** Empty if the model has no times of words. */
  words: LiveWord[];
}

export interface LivePartial {
  key: string;
  start: number;
  end: number;
  /** Text that is never taken back. */
  stable: string;
  /** Text that may still change. */
  tentative: string;
}

export type LiveState = "connecting" | "listening" | "lost" | "finishing" | "closed";

export interface LiveOptions {
  address: string;
  protocols: string[];
  /** Hz of the audio. */
  rate: number;
  /** Seconds recorded before: the session goes on there. */
  startsAt: number;
  model: string;
  language: string;
  task: string;
  words: boolean;
}

export interface LiveEvents {
  onLine(line: LiveLine): void;
  onPartial(partial: LivePartial | null): void;
  /** The server is ready, with this model. */
  onReady(model: string): void;
  onState(state: LiveState): void;
  /** An error of the server, as a sentence; empty if the connection failed without one. */
  onError(message: string): void;
}

interface ServerMessage {
  type: string;
  model?: string;
  utterance?: number;
  start?: number;
  end?: number;
  text?: string;
  stable?: string;
  tentative?: string;
  words?: LiveWord[];
  error?: { message: string };
}

/** Seconds of audio without final text that are kept for a server that comes back. */
const MAX_KEPT_S = 120;
const RETRY_DELAYS_MS = [500, 1000, 2000, 4000, 8000, 8000, 8000];
/** Attempts at a server that has not answered yet: it may refuse this page, and then never will. */
const FIRST_ATTEMPTS = 2;
/** Close codes after which another attempt makes sense: no close frame, the server stops, it is busy. */
const PASSING_CODES = [1006, 1012, 1013];

export class LiveSession {
  private socket: WebSocket | null = null;
  private kept: { at: number; data: ArrayBuffer }[] = [];
  /** Seconds captured so far, on the recording's clock. */
  private captured: number;
  /** The time on the recording's clock at which the current connection's audio began. */
  private origin = 0;
  private connection = 0;
  private attempts = 0;
  private hasBeenReady = false;
  /** Whether there is no more audio to come. */
  private isEnded = false;
  private timer = 0;
  private state: LiveState = "connecting";
  /** Whether the server has reported an error on the current connection. */
  private hasFailed = false;

  constructor(
    private readonly options: LiveOptions,
    private readonly events: LiveEvents,
  ) {
    this.captured = options.startsAt;
    this.connect();
  }

  /** Send a piece of audio, or keep it until there is a connection. */
  feed(data: ArrayBuffer): void {
    if (this.isEnded || this.state === "closed") return;
    this.kept.push({ at: this.captured, data });
    this.captured += data.byteLength / 2 / this.options.rate;
    while (this.captured - this.kept[0]!.at > MAX_KEPT_S) this.kept.shift();
    if (this.state === "listening") this.socket?.send(data);
  }

  /** End the audio. The last text comes, then the state is `closed`. Without a connection that happens once there is one
   * again; a second call gives up waiting for it. */
  finish(): void {
    if (this.isEnded && this.state !== "finishing") return this.close();
    this.isEnded = true;
    if (this.state === "listening") this.sendFinish();
  }

  /** End at once. */
  close(): void {
    window.clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.setState("closed");
  }

  private connect(): void {
    const { model, language, task, words, rate, protocols } = this.options;
    const address = new URL(this.options.address);
    const query = { model, language, task, encoding: "s16le", sample_rate: String(rate), words: words ? "true" : "" };
    for (const [name, value] of Object.entries(query)) if (value) address.searchParams.set(name, value);
    const socket = new WebSocket(address, protocols);
    this.socket = socket;
    this.connection += 1;
    this.hasFailed = false;
    socket.onopen = () => {
      this.origin = this.kept[0]?.at ?? this.captured;
      for (const piece of this.kept) socket.send(piece.data);
      if (this.isEnded) this.sendFinish();
      else this.setState("listening");
    };
    socket.onmessage = ({ data }: MessageEvent<string>) => {
      if (socket === this.socket) this.receive(JSON.parse(data) as ServerMessage);
    };
    socket.onclose = ({ code, reason }) => {
      if (socket === this.socket) this.handleClose(code, reason);
    };
  }

  private sendFinish(): void {
    this.setState("finishing");
    this.socket?.send(JSON.stringify({ type: "finish" }));
  }

  private receive(message: ServerMessage): void {
    const key = `${this.connection}.${message.utterance ?? 0}`;
    const start = (message.start ?? 0) + this.origin;
    const end = (message.end ?? 0) + this.origin;
    switch (message.type) {
      case "ready":
        this.attempts = 0;
        this.hasBeenReady = true;
        this.events.onReady(message.model ?? "");
        break;
      case "partial":
        this.events.onPartial({ key, start, end, stable: message.stable ?? "", tentative: message.tentative ?? "" });
        break;
      case "final":
        this.kept = this.kept.filter((piece) => piece.at >= end);
        this.events.onPartial(null);
        if (message.text) this.events.onLine({ key, start, end, text: message.text, words: this.shift(message.words ?? []) });
        break;
      case "error":
        this.hasFailed = true;
        this.events.onError(message.error?.message ?? "");
    }
  }

  private shift(words: readonly LiveWord[]): LiveWord[] {
    return words.map((word) => ({ ...word, start: word.start + this.origin, end: word.end + this.origin }));
  }

  private handleClose(code: number, reason: string): void {
    this.socket = null;
    const delay = RETRY_DELAYS_MS[this.attempts];
    const isHopeful = PASSING_CODES.includes(code) && (this.hasBeenReady || this.attempts < FIRST_ATTEMPTS);
    if (isHopeful && delay !== undefined) {
      this.attempts += 1;
      this.events.onPartial(null);
      this.setState("lost");
      this.timer = window.setTimeout(() => this.connect(), delay);
      return;
    }
    if (code !== 1000 && !this.hasFailed) this.events.onError(reason);
    this.setState("closed");
  }

  private setState(state: LiveState): void {
    if (state === this.state && state !== "connecting") return;
    this.state = state;
    this.events.onState(state);
  }
}
