/** Responses that arrive in pieces: bytes, text, lines and server-sent events. */

import { t } from "../i18n";
import { ApiError } from "./client";

export interface ServerEvent {
  readonly event: string;
  readonly data: string;
}

/** Collects pieces and returns the events that are complete. */
export class EventParser {
  #rest = "";
  #event = "";
  #data: string[] = [];

  feed(piece: string): ServerEvent[] {
    const text = this.#rest + piece;
    // A carriage return at the end may be half of a line's end.
    const end = text.endsWith("\r") ? text.length - 1 : text.length;
    const lines = text.slice(0, end).split(/\r\n|\n|\r/);
    this.#rest = (lines.pop() ?? "") + text.slice(end);
    return lines.flatMap((line) => this.#readLine(line));
  }

  #readLine(line: string): ServerEvent[] {
    if (line === "") {
      const event = { event: this.#event || "message", data: this.#data.join("\n") };
      const isEmpty = this.#data.length === 0;
      this.#event = "";
      this.#data = [];
      return isEmpty ? [] : [event];
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#event = value;
    if (field === "data") this.#data.push(value);
    return [];
  }
}

/** The body of a response, in pieces as they arrive. A reader that stops before the end closes the connection.
 *
 * @throws ApiError if the connection breaks; DOMException `AbortError` if the request is aborted.
 */
export async function* readBytes(response: Response): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = response.body?.getReader();
  try {
    while (reader) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        throw error instanceof DOMException ? error : new ApiError(t("error.connectionLost"), 0);
      });
      if (done) return;
      yield value;
    }
  } finally {
    reader?.cancel().catch(() => undefined);
  }
}

/** The text of a response, in pieces as they arrive. */
export async function* readText(response: Response): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  for await (const piece of readBytes(response)) yield decoder.decode(piece, { stream: true });
}

/** The lines of a response as they arrive, without empty ones. */
export async function* readLines(response: Response): AsyncGenerator<string> {
  let rest = "";
  for await (const piece of readText(response)) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop() ?? "";
    yield* lines.filter(Boolean);
  }
  if (rest) yield rest;
}
