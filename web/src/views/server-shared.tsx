/** Parts of the server's panels: repeated requests, durations and tables. */

import { useSignal, type Signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { apiKey, describeError, isRefusal, requestJson } from "../api/client";
import { language } from "../i18n";

export interface Polled<T> {
  readonly data: Signal<T | null>;
  readonly error: Signal<string>;
  /** Ask now. */
  refresh(): void;
}

/** Ask for JSON again and again while the page is visible. A key without the right ends it, until there is another. */
export function usePolled<T>(path: string, everyMs: number): Polled<T> {
  const data = useSignal<T | null>(null);
  const error = useSignal("");
  const asked = useSignal(0);
  useEffect(() => {
    const controller = new AbortController();
    let timer = 0;
    const ask = async () => {
      try {
        if (document.visibilityState === "visible") {
          data.value = await requestJson<T>(path, { signal: controller.signal });
          error.value = "";
        }
      } catch (caught) {
        if (controller.signal.aborted) return;
        error.value = describeError(caught);
        if (isRefusal(caught)) return;
      }
      if (!controller.signal.aborted) timer = window.setTimeout(() => void ask(), everyMs);
    };
    void ask();
    return () => {
      controller.abort();
      window.clearTimeout(timer);
    };
  }, [path, everyMs, asked.value, apiKey.value]);
  return { data, error, refresh: () => (asked.value += 1) };
}

/** A short duration, as in `0.35 s`. */
export function formatMs(ms: number): string {
  return `${new Intl.NumberFormat(language.value, { maximumFractionDigits: ms < 10_000 ? 2 : 0 }).format(ms / 1000)} s`;
}

/** A table that may be wider than the screen, and is then scrolled by itself. */
export function Table({ label, heads, children }: { label: string; heads: readonly string[]; children: preact.ComponentChildren }) {
  return (
    <div class="table" role="region" aria-label={label} tabIndex={0}>
      <table>
        <thead>
          <tr>
            {heads.map((head, index) => (
              <th key={index} scope="col">
                {head}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>{children}</tbody>
      </table>
    </div>
  );
}
