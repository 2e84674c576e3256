import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { formatDate, nameLanguage, t } from "../i18n";
import { ExportMenu } from "../parts/export-menu";
import { link } from "../router";
import { deleteTranscripts, history as entries, loadHistory, loadTranscript, storeProblem } from "../store";
import { formatClock } from "../transcript/clock";
import type { TranscriptInfo } from "../transcript/types";
import type { View } from "./view";

function History() {
  const search = useSignal("");
  useEffect(() => void loadHistory(), []);
  const wanted = search.value.trim().toLowerCase();
  const found = entries.value.filter((info) => `${info.name} ${info.excerpt}`.toLowerCase().includes(wanted));
  const clear = () => {
    if (confirm(t("history.confirmClear", { count: found.length }))) void deleteTranscripts(found.map((info) => info.id));
  };
  return (
    <div class="page">
      <h1>{t("history.title")}</h1>
      <p class="hint">{t("history.where")}</p>
      {storeProblem.value && <p class="error">{t("history.problem", { reason: storeProblem.value })}</p>}
      {entries.value.length > 0 && (
        <div class="row between">
          <input
            type="search"
            aria-label={t("search.label")}
            placeholder={t("search.label")}
            value={search.value}
            onInput={(event) => (search.value = event.currentTarget.value)}
          />
          <button class="danger" onClick={clear}>
            {t("history.clear", { count: found.length })}
          </button>
        </div>
      )}
      {!found.length && <p>{t("history.empty")}</p>}
      <ul class="queue">
        {found.map((info) => (
          <HistoryRow key={info.id} info={info} />
        ))}
      </ul>
    </div>
  );
}

function HistoryRow({ info }: { info: TranscriptInfo }) {
  const facts = [
    formatDate(info.created),
    info.duration ? formatClock(info.duration) : "",
    info.language ? nameLanguage(info.language) : "",
    info.model,
    info.edited ? t("history.edited") : "",
  ];
  const remove = () => {
    if (confirm(t("history.confirmDelete", { name: info.name }))) void deleteTranscripts([info.id]);
  };
  return (
    <li class="queue-item">
      <div class="row between">
        <div class="queue-name">
          <a href={link("read", info.id)}>
            <strong>{info.name}</strong>
          </a>
          <span class="hint">{facts.filter(Boolean).join(" · ")}</span>
        </div>
        <div class="row">
          <ExportMenu load={() => loadTranscript(info.id)} />
          <button class="danger" aria-label={`${t("delete")}: ${info.name}`} onClick={remove}>
            {t("delete")}
          </button>
        </div>
      </div>
      <p class="preview">{info.excerpt}</p>
    </li>
  );
}

export const history: View = { name: "history", title: "history.title", component: History, isInNavigation: true };
