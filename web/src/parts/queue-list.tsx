import { zipSync, strToU8 } from "fflate";
import { saveFile } from "../files";
import { formatSize, t } from "../i18n";
import { cancelItem, clearFinished, isActive, isOver, queue, retryItem, type QueueItem } from "../queue";
import { link } from "../router";
import { loadTranscript } from "../store";
import { formatClock } from "../transcript/clock";
import { formatTranscript, type TextFormat } from "../transcript/formats";
import { ExportMenu, exportShape, nameFile } from "./export-menu";

/** The queue: each recording with its progress. */
export function QueueList() {
  const items = queue.value;
  if (!items.length) return null;
  const done = items.filter((item) => item.state.value === "done").length;
  const failed = items.filter((item) => item.state.value === "failed").length;
  return (
    <section aria-labelledby="queue-title">
      <div class="row between">
        <h2 id="queue-title">{t("queue.title")}</h2>
        <div class="row wrap">
          {done > 1 && items.every(isOver) && (["txt", "srt"] as const).map((format) => <SaveAll key={format} format={format} />)}
          {items.some(isOver) && <button onClick={clearFinished}>{t("queue.clear")}</button>}
        </div>
      </div>
      <p role="status">
        {t("queue.status", { done, all: items.length })}
        {failed ? ` ${t("queue.failed", { count: failed })}` : ""}
      </p>
      <ul class="queue">
        {items.map((item) => (
          <QueueRow key={item.id} item={item} />
        ))}
      </ul>
    </section>
  );
}

function SaveAll({ format }: { format: TextFormat }) {
  const save = async () => {
    const files: Record<string, Uint8Array> = {};
    for (const item of queue.value) {
      const transcript = item.transcript.value && (await loadTranscript(item.transcript.value));
      if (!transcript) continue;
      let name = nameFile(transcript.name, format);
      for (let number = 2; name in files; number += 1) name = nameFile(`${transcript.name} (${number})`, format);
      files[name] = strToU8(formatTranscript(transcript, format, exportShape()));
    }
    saveFile("transcripts.zip", zipSync(files) as Uint8Array<ArrayBuffer>, "application/zip");
  };
  return <button onClick={() => void save()}>{t("queue.saveAll", { format: format.toUpperCase() })}</button>;
}

function QueueRow({ item }: { item: QueueItem }) {
  const state = item.state.value;
  return (
    <li class={`queue-item ${state}`}>
      <div class="row between">
        <div class="queue-name">
          <strong>{item.file.name}</strong>
          <span class="hint">
            {formatSize(item.file.size)}
            {item.duration.value ? ` · ${formatClock(item.duration.value)}` : ""} · {t(`queue.state.${state}`)}
          </span>
        </div>
        <QueueActions item={item} />
      </div>
      {item.error.value && <p class="error">{item.error.value}</p>}
      {isActive(item) && <QueueProgress item={item} />}
      {item.text.value && state !== "failed" && <p class="preview">{shorten(item.text.value)}</p>}
    </li>
  );
}

/** The end of a text, where it grows. */
function shorten(text: string): string {
  return text.length > 320 ? `… ${text.slice(-300)}` : text;
}

function QueueActions({ item }: { item: QueueItem }) {
  const id = item.transcript.value;
  if (id) {
    return (
      <div class="row">
        <a class="button primary" href={link("read", id)}>
          {t("queue.read")}
        </a>
        <ExportMenu load={() => loadTranscript(id)} />
      </div>
    );
  }
  const action = t(isOver(item) ? "retry" : "cancel");
  return (
    <button onClick={() => (isOver(item) ? retryItem(item) : cancelItem(item))} aria-label={`${action}: ${item.file.name}`}>
      {action}
    </button>
  );
}

function QueueProgress({ item }: { item: QueueItem }) {
  const sent = item.sent.value;
  const { value: decoded } = item.decoded;
  const { value: duration } = item.duration;
  // The browser's duration and the server's may differ by a little.
  const share = duration ? Math.min(decoded / duration, 1) : undefined;
  return (
    <div class="bars">
      <div class="bar">
        <progress max={1} value={sent} aria-label={t("queue.upload")} />
        <span>{t("queue.sent", { percent: Math.floor(sent * 100) })}</span>
      </div>
      <div class="bar">
        <progress max={1} value={share} aria-label={t("queue.decode")} />
        <span>
          {formatClock(decoded)}
          {duration ? ` / ${formatClock(duration)}` : ""}
        </span>
      </div>
    </div>
  );
}
