/** Texts of the page in the user's language. A dictionary is a file beside this one; a text that it lacks is shown in English. */

import { effect } from "@preact/signals";
import { rememberedSignal } from "../storage";
import { de } from "./de";
import { en, type Dictionary, type MessageKey } from "./en";

export type { MessageKey } from "./en";

export const dictionaries: Readonly<Record<string, { readonly label: string; readonly texts: Dictionary }>> = {
  en: { label: "English", texts: en },
  de: { label: "Deutsch", texts: de },
};

const isLanguage = (value: unknown): value is string => typeof value === "string" && value in dictionaries;

function chooseLanguage(): string {
  const wanted = typeof navigator === "undefined" ? [] : navigator.languages;
  return wanted.map((tag) => tag.split("-")[0]).find(isLanguage) ?? "en";
}

export const language = rememberedSignal("language", chooseLanguage(), isLanguage);

effect(() => {
  if (typeof document !== "undefined") document.documentElement.lang = language.value;
});

/** The text of a key, with `{name}` replaced by values. */
export function t(key: MessageKey, values: Readonly<Record<string, string | number>> = {}): string {
  const text = dictionaries[language.value]?.texts[key] ?? en[key];
  return text.replace(/\{(\w+)\}/g, (match, name: string) => String(values[name] ?? match));
}

/** The name of a language in the user's language; the code itself if it is unknown. */
export function nameLanguage(code: string): string {
  try {
    return new Intl.DisplayNames([language.value], { type: "language" }).of(code) ?? code;
  } catch {
    return code;
  }
}

/** A date and time in the user's language. */
export function formatDate(ms: number): string {
  return new Intl.DateTimeFormat(language.value, { dateStyle: "medium", timeStyle: "short" }).format(ms);
}

/** A size in bytes with a unit. */
export function formatSize(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit && value < 10 ? 1 : 0;
  return `${new Intl.NumberFormat(language.value, { maximumFractionDigits: digits }).format(value)} ${units[unit]}`;
}
