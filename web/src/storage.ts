/** Values in the browser's storage, which may be forbidden, full, or hold what another version wrote. */

import { effect, signal, type Signal } from "@preact/signals";

const PREFIX = "eardrum.";

/** Read a value; undefined if there is none, or it cannot be read. */
export function readStored(storage: "local" | "session", name: string): unknown {
  try {
    const text = getStorage(storage).getItem(PREFIX + name);
    return text === null ? undefined : JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Write a value, or remove it if it is undefined. Without storage the value lasts as long as the page. */
export function writeStored(storage: "local" | "session", name: string, value: unknown): void {
  try {
    if (value === undefined) getStorage(storage).removeItem(PREFIX + name);
    else getStorage(storage).setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Storage is forbidden or full.
  }
}

/** A signal whose value is remembered in this browser. `isValid` decides whether a stored value can be used. */
export function rememberedSignal<T>(name: string, initial: T, isValid: (value: unknown) => value is T): Signal<T> {
  const stored = readStored("local", name);
  const remembered = signal(isValid(stored) ? stored : initial);
  let isFirst = true;
  effect(() => {
    const value = remembered.value;
    if (!isFirst) writeStored("local", name, value);
    isFirst = false;
  });
  return remembered;
}

export const isText = (value: unknown): value is string => typeof value === "string";
export const isFlag = (value: unknown): value is boolean => typeof value === "boolean";
export const isNumber = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value);

function getStorage(kind: "local" | "session"): Storage {
  return kind === "local" ? localStorage : sessionStorage;
}
