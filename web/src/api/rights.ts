/** The rights of the key in use: what it may not see is not shown. */

import { effect, signal } from "@preact/signals";
import { apiKey, isTemporary, requestJson } from "./client";

export type Scope = "transcribe" | "speak" | "chat" | "models" | "manage" | "logs" | "metrics";

export interface KeyRights {
  readonly scopes: readonly Scope[];
}

const RETRY_MS = 2000;

/** Null until the server has answered. */
export const rights = signal<KeyRights | null>(null);

/** Whether the key in use opens the routes of a scope. */
export function may(scope: Scope): boolean {
  return rights.value?.scopes.includes(scope) ?? false;
}

/** Ask the server now, until it answers, and again whenever the key changes. The route needs no key. */
export function followRights(): () => void {
  return effect(() => {
    const key = apiKey.value;
    const stopped = new AbortController();
    void askForRights(key, stopped.signal);
    return () => stopped.abort();
  });
}

async function askForRights(key: string, signal: AbortSignal): Promise<void> {
  try {
    const found = await requestJson<KeyRights>("api/keys/current", { signal });
    if (apiKey.peek() === key) rights.value = found;
  } catch (error) {
    // What was known stays while the server is away.
    if (!signal.aborted && isTemporary(error)) setTimeout(() => !signal.aborted && void askForRights(key, signal), RETRY_MS);
  }
}
