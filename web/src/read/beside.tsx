import { useComputed, useSignal, type ReadonlySignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import { findRecording } from "../recordings";
import { history, loadHistory, loadTranscript } from "../store";
import { compareWords, placeBeside } from "../transcript/compare";
import type { Transcript, TranscriptInfo } from "../transcript/types";
import { transcribeFiles } from "../views/transcribe";
import type { ReadSession } from "./session";

/** The text of another transcript beside each cue, by the cue's id; null if none is chosen. */
export type Beside = ReadonlySignal<Map<number, preact.ComponentChildren> | null>;

/** Lets the user choose another transcript of the same recording, which then stands beside this one. */
export function useBeside(session: ReadSession): { picker: preact.ComponentChildren; beside: Beside } {
  const { original } = session;
  const other = useSignal<Transcript | null>(null);
  useEffect(() => void loadHistory(), []);
  const beside = useComputed(() => (other.value ? renderBeside(session, other.value) : null));
  const isSame = (info: TranscriptInfo) => info.id !== original.id && info.name === original.name && info.size === original.size;
  const others = history.value.filter(isSame);
  const wanted = useRef("");
  const choose = async (id: string) => {
    wanted.current = id;
    const loaded = (id && (await loadTranscript(id))) || null;
    if (wanted.current === id) other.value = loaded; // else another one was chosen in the meantime
  };
  const recording = findRecording(original.id);
  const picker = (
    <>
      {others.length > 0 && (
        <select aria-label={t("beside.label")} value={other.value?.id ?? ""} onChange={(event) => void choose(event.currentTarget.value)}>
          <option value="">{t("beside.none")}</option>
          {others.map((info) => (
            <option key={info.id} value={info.id}>
              {describe(info)}
            </option>
          ))}
        </select>
      )}
      {recording && (
        <button type="button" title={t("beside.againTitle")} onClick={() => transcribeFiles([recording])}>
          {t("beside.again")}
        </button>
      )}
    </>
  );
  return { picker, beside };
}

function describe(info: TranscriptInfo): string {
  const task = info.task === "translate" ? t("beside.english") : "";
  return [info.model || t("beside.default"), task, new Date(info.created).toLocaleTimeString()].filter(Boolean).join(" · ");
}

function renderBeside(session: ReadSession, other: Transcript): Map<number, preact.ComponentChildren> {
  const cues = session.cues.value;
  const isComparable = other.task === session.original.task;
  const texts = isComparable ? compareWords(cues, other.cues) : placeBeside(cues, other.cues);
  const rendered = new Map<number, preact.ComponentChildren>();
  for (const [id, parts] of texts) {
    rendered.set(
      id,
      parts.map((part, index) => [index ? " " : "", part.isDifferent ? <mark>{part.text}</mark> : part.text]),
    );
  }
  return rendered;
}
