/** Requests to the server that served the page: addresses relative to the page, the API key, and errors as sentences. */

import { signal } from "@preact/signals";
import { t } from "../i18n";
import { readStored, writeStored } from "../storage";

/** A refused or failed request. `status` is 0 if there was no answer. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code = "",
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** The sentence of an error. */
export function describeError(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A question to the user for a key. */
export interface KeyQuestion {
  /** The reason why the last key was refused; empty if there was none. */
  readonly reason: string;
  answer(key: string, isRemembered: boolean): void;
  cancel(): void;
}

const stored = readStored("session", "key") ?? readStored("local", "key");
export const apiKey = signal(typeof stored === "string" ? stored : "");
/** The open question, which the page's dialog shows. */
export const keyQuestion = signal<KeyQuestion | null>(null);
let openQuestion: Promise<boolean> | null = null;

/** The address of a path on the server, such as `v1/models`, below whatever path the page itself has. */
export function buildAddress(path: string): string {
  return new URL(path.replace(/^\//, ""), document.baseURI.replace(/[#?].*$/, "")).href;
}

/** Encode a name as a part of a path. Slashes are part of models' names, and stay. */
export function encodePath(name: string): string {
  return name.split("/").map(encodeURIComponent).join("/");
}

/** The address of a WebSocket on the server. */
export function buildSocketAddress(path: string): string {
  return buildAddress(path).replace(/^http/, "ws");
}

/** The subprotocols of a WebSocket, one of which carries the key: browsers cannot set headers there. Characters that a
 * subprotocol cannot have, such as `/` and `=`, are percent-encoded. */
export function buildSubprotocols(...protocols: string[]): string[] {
  if (!apiKey.value) return protocols;
  const key = encodeURIComponent(apiKey.value).replaceAll("(", "%28").replaceAll(")", "%29");
  return [...protocols, `openai-insecure-api-key.${key}`];
}

/** The headers of every request: the key, and one that keeps the browser from asking for a password by itself. `authorization`
 * stays free for the login of a proxy in front of the server. */
export function buildKeyHeaders(): Record<string, string> {
  const key = apiKey.value ? { "x-api-key": encodeHeader(apiKey.value) } : {};
  return { "x-requested-with": "Eardrum", ...key };
}

/** Headers hold bytes: a key that is not ASCII is sent as UTF-8, which the server reads. */
function encodeHeader(value: string): string {
  return Array.from(new TextEncoder().encode(value), (byte) => String.fromCharCode(byte)).join("");
}

/** Store the key: for the session, or until it is forgotten. */
export function setKey(key: string, isRemembered: boolean): void {
  apiKey.value = key;
  writeStored("session", "key", key || undefined);
  writeStored("local", "key", isRemembered && key ? key : undefined);
}

/** Ask the user for a key, unless a question is open already. False if the user gives none. */
export function askForKey(reason: string): Promise<boolean> {
  openQuestion ??= new Promise<boolean>((resolve) => {
    const close = (given: boolean) => {
      keyQuestion.value = null;
      openQuestion = null;
      resolve(given);
    };
    keyQuestion.value = {
      reason,
      answer: (key, isRemembered) => {
        setKey(key, isRemembered);
        close(true);
      },
      cancel: () => close(false),
    };
  });
  return openQuestion;
}

/** Obtain a key for a request that was refused for want of one: the user gave it in the meantime, or gives it now. False for
 * other refusals, and if the user gives none. */
export async function obtainKey(refusal: ApiError, sentKey: string): Promise<boolean> {
  return refusal.status === 401 && (apiKey.value !== sentKey || (await askForKey(sentKey ? refusal.message : "")));
}

/** Send a request. Asks for a key, and sends the request again, for as long as the server wants one.
 *
 * @throws ApiError if the answer is no success, or there is none.
 */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  for (;;) {
    const sentKey = apiKey.value;
    const response = await send(path, init);
    if (response.ok) return response;
    const error = await readError(response);
    if (!(await obtainKey(error, sentKey))) throw error;
  }
}

/** Send a request and parse the answer as JSON. */
export async function requestJson<T>(path: string, init?: RequestInit): Promise<T> {
  return (await (await request(path, init)).json()) as T;
}

async function send(path: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(buildAddress(path), { ...init, headers: { ...(init.headers as Record<string, string>), ...buildKeyHeaders() } });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(t("error.noAnswer"), 0);
  }
}

async function readError(response: Response): Promise<ApiError> {
  return parseError(response.status, await response.text().catch(() => ""));
}

/** The error in a body: OpenAI's shape, Ollama's, or text. */
export function parseError(status: number, body: string): ApiError {
  try {
    const parsed: unknown = JSON.parse(body);
    if (parsed && typeof parsed === "object" && "error" in parsed) {
      const error = parsed.error as { message?: unknown; code?: unknown } | string;
      if (typeof error === "string") return new ApiError(error, status);
      return new ApiError(String(error?.message ?? body), status, String(error?.code ?? ""));
    }
  } catch {
    // Not JSON: a proxy's page, or nothing.
  }
  const text = body.trim().startsWith("<") ? "" : body.trim().slice(0, 300);
  return new ApiError(text || `HTTP ${status}`, status);
}
