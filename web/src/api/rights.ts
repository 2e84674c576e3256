/** The rights of the key in use: what it may not see is not shown. */

import { effect, signal } from "@preact/signals";
import { apiKey, requestJson } from "./client";

export type Scope = "transcribe" | "speak" | "chat" | "models" | "manage" | "logs" | "metrics";

export interface KeyRights {
  readonly scopes: readonly Scope[];
}

/** Null until the server has answered. */
export const rights = signal<KeyRights | null>(null);

/** Whether the key in use opens the routes of a scope. */
export function may(scope: Scope): boolean {
  return rights.value?.scopes.includes(scope) ?? false;
}

/** Ask the server once now, and again whenever the key changes. The route needs no key. */
export function followRights(): () => void {
  return effect(() => {
    const key = apiKey.value;
    requestJson<KeyRights>("api/keys/current").then(
      (found) => {
        if (apiKey.peek() === key) rights.value = found;
      },
      () => undefined, // the server is away: what was known stays
    );
  });
}
