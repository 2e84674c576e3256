/** Requests to the server that served the page: addresses relative to the page, the API key, and errors as sentences. */

import { signal } from "@preact/signals";
import { t } from "../i18n";
import { readStored, writeStored } from "../storage";

/** A refused or failed request. `status` is 0 if there was no answer. `retryAfter` is the seconds after which the server wants
 * to be asked again; 0 if it did not say. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code = "",
    readonly retryAfter = 0,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** The sentence of an error. */
export function describeError(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The server's errors that pass by themselves. In a stream that has begun they come with status 200. */
const PASSING_CODES = ["busy", "concurrency_limit", "rate_limit_exceeded", "out_of_descriptors", "model_unloaded", "no_replica", "shutting_down"];

/** Whether the same request may succeed later: nobody answered, the server has no room or stops, or a proxy cannot reach it. An
 * error of the server itself has a code: its 502 and 504 are about a server behind the model. */
export function isTemporary(error: unknown): boolean {
  if (!(error instanceof ApiError)) return false;
  const { status, code } = error;
  const isOfProxy = !code && (status === 502 || status === 504 || (status >= 520 && status <= 530));
  return [0, 429, 503].includes(status) || PASSING_CODES.includes(code) || isOfProxy;
}

/** Whether the key in use, or no key, may not do this. The same request with the same key is refused again. */
export function isRefusal(error: unknown): boolean {
  return error instanceof ApiError && [401, 403].includes(error.status);
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

/** Send a request and parse the answer as JSON.
 *
 * @throws ApiError as `request` does, or if the answer breaks off or is not JSON, such as a proxy's page for logging in.
 */
export async function requestJson<T>(path: string, init?: RequestInit): Promise<T> {
  const response = await request(path, init);
  try {
    return (await response.json()) as T;
  } catch (error) {
    if (error instanceof DOMException) throw error;
    if (error instanceof SyntaxError) throw new ApiError(t("error.foreign"), response.status);
    throw new ApiError(t("error.connectionLost"), 0);
  }
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
  return parseError(response.status, await response.text().catch(() => ""), response.headers.get("retry-after"));
}

/** The error in a body: OpenAI's shape, Ollama's, or text. `retryAfter` is the header of that name. */
export function parseError(status: number, body: string, retryAfter: string | null = null): ApiError {
  const seconds = Number(retryAfter) || 0;
  try {
    const parsed: unknown = JSON.parse(body);
    if (parsed && typeof parsed === "object" && "error" in parsed) {
      const error = parsed.error as { message?: unknown; code?: unknown } | string;
      if (typeof error === "string") return new ApiError(error, status, "", seconds);
      return new ApiError(String(error?.message ?? body), status, String(error?.code ?? ""), seconds);
    }
  } catch {
    // Not JSON: a proxy's page, or nothing.
  }
  const text = body.trim().startsWith("<") ? "" : body.trim().slice(0, 300);
  return new ApiError(text || `HTTP ${status}`, status, "", seconds);
}
