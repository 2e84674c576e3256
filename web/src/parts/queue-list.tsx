import { zipSync, strToU8 } from "fflate";
import { saveFile } from "../files";
import { formatSize, t } from "../i18n";
import { cancelItem, clearFinished, isActive, queue, retryItem, type QueueItem } from "../queue";
import { link } from "../router";
import { loadTranscript } from "../store";
import { formatClock } from "../transcript/clock";
import { formatTranscript, type TextFormat } from "../transcript/formats";
import { ExportMenu, exportShape, nameFile } from "./export-menu";

/** The recordings that were dropped, and how far each is. */
export function QueueList() {
  const items = queue.value;
  if (!items.length) return null;
  const done = items.filter((item) => item.state.value === "done").length;
  const failed = items.filter((item) => item.state.value === "failed").length;
  const isFinished = items.every((item) => !isActive(item) && item.state.value !== "waiting");
  return (
    <section aria-labelledby="queue-title">
      <div class="row between">
        <h2 id="queue-title">{t("queue.title")}</h2>
        <div class="row">
          {done > 1 && isFinished && (["txt", "srt"] as const).map((format) => <SaveAll key={format} format={format} />)}
          {(done > 0 || failed > 0) && <button onClick={clearFinished}>{t("queue.clear")}</button>}
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

/** The end of a text: where it is growing. */
function shorten(text: string): string {
  return text.length > 320 ? `… ${text.slice(-300)}` : text;
}

function QueueActions({ item }: { item: QueueItem }) {
  const state = item.state.value;
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
  const isOver = state === "failed" || state === "cancelled";
  const label = `${t(isOver ? "retry" : "cancel")}: ${item.file.name}`;
  return (
    <button onClick={() => (isOver ? retryItem(item) : cancelItem(item))} aria-label={label}>
      {t(isOver ? "retry" : "cancel")}
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
