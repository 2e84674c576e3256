/** Audio that plays while it arrives. */

/** Milliseconds after which a full buffer is tried again: the browser drops what was played. */
const RETRY_MS = 1000;

/** The source of an audio element, to which pieces of a file are added. */
export class AudioStream {
  /** The address for the element. */
  readonly address: string;
  /** Whether the browser had no room for all of it: then it may have dropped the beginning, which cannot be played again. */
  isOverfull = false;
  readonly #source = new MediaSource();
  readonly #waiting: Uint8Array<ArrayBuffer>[] = [];
  #buffer: SourceBuffer | null = null;
  #isComplete = false;

  /** Whether the browser plays files of a type while they arrive. */
  static supports(type: string): boolean {
    return typeof MediaSource !== "undefined" && MediaSource.isTypeSupported(type);
  }

  constructor(type: string) {
    this.address = URL.createObjectURL(this.#source);
    this.#source.onsourceopen = () => {
      if (this.#buffer) return;
      this.#buffer = this.#source.addSourceBuffer(type);
      this.#buffer.onupdateend = () => this.#append();
      this.#append();
    };
  }

  add(piece: Uint8Array<ArrayBuffer>): void {
    this.#waiting.push(piece);
    this.#append();
  }

  /** Tell that no more pieces come. */
  end(): void {
    this.#isComplete = true;
    this.#append();
  }

  #append(): void {
    const [piece] = this.#waiting;
    if (!this.#buffer || this.#buffer.updating || this.#source.readyState !== "open") return;
    if (!piece) {
      if (this.#isComplete) this.#source.endOfStream();
      return;
    }
    try {
      this.#buffer.appendBuffer(piece);
      this.#waiting.shift();
    } catch (error) {
      if (!(error instanceof DOMException) || error.name !== "QuotaExceededError") throw error;
      this.isOverfull = true;
      setTimeout(() => this.#append(), RETRY_MS);
    }
  }
}
