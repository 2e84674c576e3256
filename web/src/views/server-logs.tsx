/** Logs of the server and of models, followed. */

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { apiKey, describeError, encodePath, isRefusal, request } from "../api/client";
import { readLines } from "../api/events";
import { loadModels, models } from "../api/models";
import { t } from "../i18n";
import { ErrorMessage } from "../parts/error-message";

/** Lines that are kept: a log without an end must not fill the memory. */
const MAX_LINES = 2000;
const RETRY_MS = 2000;
/** Lines that come close together are shown at once. */
const GATHER_MS = 100;

interface LogLine {
  readonly number: number;
  readonly text: string;
}

export function LogsPanel() {
  const source = useSignal("proxy");
  const wanted = useSignal("");
  const isPaused = useSignal(false);
  const lines = useSignal<readonly LogLine[]>([]);
  const problem = useSignal("");
  useEffect(() => void loadModels(), []);
  useEffect(() => {
    const controller = new AbortController();
    lines.value = []; // those of another log
    problem.value = "";
    const show = (fresh: readonly LogLine[], isFirst: boolean) => {
      lines.value = [...(isFirst ? [] : lines.value), ...fresh].slice(-MAX_LINES);
    };
    void followLog(source.value, controller.signal, show, (message) => (problem.value = message));
    return () => controller.abort();
  }, [source.value, apiKey.value]);
  const choose = (name: string) => {
    source.value = name;
    isPaused.value = false;
  };
  const needle = wanted.value.trim().toLowerCase();
  const shown = needle ? lines.value.filter(({ text }) => text.toLowerCase().includes(needle)) : lines.value;
  return (
    <>
      <div class="toolbar">
        <label class="field">
          {t("server.log.source")}
          <select value={source.value} onChange={(event) => choose(event.currentTarget.value)}>
            <option value="proxy">{t("server.log.server")}</option>
            <option value="upstream">{t("server.log.models")}</option>
            {models.value.map((model) => (
              <option key={model.id} value={model.id}>
                {model.id}
              </option>
            ))}
          </select>
        </label>
        <label class="field">
          {t("server.log.filter")}
          <input type="search" value={wanted.value} onInput={(event) => (wanted.value = event.currentTarget.value)} />
        </label>
        <label class="check">
          <input type="checkbox" checked={isPaused.value} onChange={(event) => (isPaused.value = event.currentTarget.checked)} />
          {t("server.log.pause")}
        </label>
      </div>
      <ErrorMessage text={problem.value} />
      <LogText lines={shown} isPaused={isPaused.value} />
    </>
  );
}

/** The lines. While paused, what is shown stays as it is. */
function LogText({ lines, isPaused }: { lines: readonly LogLine[]; isPaused: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  const kept = useRef(lines);
  if (!isPaused) kept.current = lines;
  useLayoutEffect(() => {
    if (box.current && !isPaused) box.current.scrollTop = box.current.scrollHeight;
  }, [kept.current, isPaused]);
  return (
    <div class="log" ref={box} role="log" aria-live="off" tabIndex={0} aria-label={t("server.logs")}>
      {kept.current.map(({ number, text }) => (
        <div key={number} class={/\b(ERROR|CRITICAL)\b/i.test(text) ? "log-error" : /\bWARN(ING)?\b/i.test(text) ? "log-warning" : undefined}>
          {text}
        </div>
      ))}
    </div>
  );
}

/** Follow a log until `signal`, or until a key is refused. A stream that ends is opened again, with its history. */
async function followLog(
  name: string,
  signal: AbortSignal,
  show: (lines: readonly LogLine[], isFirst: boolean) => void,
  fail: (message: string) => void,
): Promise<void> {
  let number = 0;
  while (!signal.aborted) {
    try {
      let isFirst = true;
      let fresh: LogLine[] = [];
      const flush = () => {
        show(fresh, isFirst);
        isFirst = false;
        fresh = [];
      };
      const response = await request(`logs/stream/${encodePath(name)}`, { signal });
      flush();
      fail("");
      for await (const text of readLines(response)) {
        if (!fresh.length) setTimeout(() => !signal.aborted && flush(), GATHER_MS);
        fresh.push({ number: (number += 1), text });
      }
    } catch (error) {
      if (signal.aborted) return;
      fail(describeError(error));
      if (isRefusal(error)) return;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}
