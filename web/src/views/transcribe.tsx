import type { Signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { defaultModel, findModel, listLanguages, listSpeechModels, loadModels, models, modelsError, type Model } from "../api/models";
import { handleFiles, receiveFiles } from "../files";
import { nameLanguage, t } from "../i18n";
import { chooseOptions, options } from "../options";
import { GetModel } from "../parts/get-model";
import { QueueList } from "../parts/queue-list";
import { addToQueue, queue } from "../queue";
import { go, route } from "../router";
import type { View } from "./list";

/** Put files into the queue, from whatever view they were dropped on. */
export function transcribeFiles(files: readonly File[]): boolean {
  addToQueue(files, chooseOptions(findModel(models.value, options.model.value, defaultModel.value)));
  if (route.value.view !== "transcribe") go("transcribe");
  return true;
}

handleFiles(transcribeFiles);

function Transcribe() {
  useEffect(() => {
    const loading = new AbortController();
    void loadModels(loading.signal);
    return () => loading.abort();
  }, []);
  return (
    <div class="page">
      <h1 class={queue.value.length ? "visually-hidden" : ""}>{t("transcribe.heading")}</h1>
      <FilePicker isSmall={queue.value.length > 0} />
      <TranscriptionSettings />
      <QueueList />
    </div>
  );
}

function FilePicker({ isSmall }: { isSmall: boolean }) {
  const choose = (input: HTMLInputElement) => {
    receiveFiles(Array.from(input.files ?? []));
    input.value = "";
  };
  return (
    <label class={isSmall ? "picker small" : "picker"}>
      <input type="file" multiple class="visually-hidden" onChange={(event) => choose(event.currentTarget)} />
      <svg viewBox="0 0 24 24" width="40" height="40" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.5">
        <path d="M12 16V4m0 0L7 9m5-5 5 5M4 16v3a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-3" stroke-linecap="round" stroke-linejoin="round" />
      </svg>
      <span class="picker-text">{t("transcribe.drop")}</span>
      <span class="button primary">{t("transcribe.choose")}</span>
      {!isSmall && <span class="hint">{t("transcribe.formats")}</span>}
    </label>
  );
}

function TranscriptionSettings() {
  const speech = listSpeechModels(models.value);
  const model = findModel(models.value, options.model.value, defaultModel.value);
  const isUnknown = options.model.value && speech.length > 0 && !speech.some((one) => one.id === options.model.value);
  return (
    <section class="panel settings" aria-label={t("settings.label")}>
      {modelsError.value && (
        <p class="error" role="alert">
          {modelsError.value} <button onClick={() => void loadModels()}>{t("retry")}</button>
        </p>
      )}
      <div class="fields">
        <label class="field">
          {t("settings.model")}
          <select value={options.model.value} onChange={(event) => (options.model.value = event.currentTarget.value)}>
            <option value="">{t("settings.defaultModel", { model: defaultModel.value || "…" })}</option>
            {speech.map((one) => (
              <option key={one.id} value={one.id}>
                {one.name ?? one.id}
              </option>
            ))}
            {isUnknown && <option value={options.model.value}>{t("settings.missingModel", { model: options.model.value })}</option>}
          </select>
        </label>
        <LanguageField model={model} />
        {model?.capabilities?.tasks?.includes("translate") && <TaskField />}
      </div>
      <details>
        <summary>{t("settings.more")}</summary>
        <HintFields model={model} />
        <GetModel />
      </details>
    </section>
  );
}

function LanguageField({ model }: { model: Model | undefined }) {
  const codes = listLanguages(model);
  const isDetected = model?.capabilities?.detects_language ?? true;
  const named = codes.map((code) => ({ code, name: nameLanguage(code) })).sort((one, other) => one.name.localeCompare(other.name));
  const only = codes.length === 1 ? codes[0] : undefined;
  const chosen = only ?? (codes.includes(options.language.value) ? options.language.value : "");
  return (
    <label class="field">
      {t("settings.language")}
      <select value={chosen} disabled={Boolean(only)} onChange={(event) => (options.language.value = event.currentTarget.value)}>
        {!only && <option value="">{t(isDetected ? "settings.detectLanguage" : "settings.anyLanguage")}</option>}
        {named.map(({ code, name }) => (
          <option key={code} value={code}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

function TaskField() {
  return (
    <label class="field">
      {t("settings.task")}
      <select
        value={options.task.value}
        onChange={(event) => (options.task.value = event.currentTarget.value === "translate" ? "translate" : "transcribe")}
      >
        <option value="transcribe">{t("settings.task.transcribe")}</option>
        <option value="translate">{t("settings.task.translate")}</option>
      </select>
    </label>
  );
}

function HintFields({ model }: { model: Model | undefined }) {
  const can = model?.capabilities;
  return (
    <>
      <div class="fields">
        <label class="field wide">
          {t("settings.prompt")}
          <textarea
            rows={2}
            value={options.prompt.value}
            disabled={can && !can.prompt}
            onInput={(event) => (options.prompt.value = event.currentTarget.value)}
          />
          <span class="hint">{t(can && !can.prompt ? "settings.unsupported" : "settings.promptHint")}</span>
        </label>
        <label class="field wide">
          {t("settings.hotwords")}
          <textarea
            rows={2}
            value={options.hotwords.value}
            disabled={can && !can.hotwords}
            onInput={(event) => (options.hotwords.value = event.currentTarget.value)}
          />
          <span class="hint">{t(can && !can.hotwords ? "settings.unsupported" : "settings.hotwordsHint")}</span>
        </label>
      </div>
      {can?.timestamp_granularities?.includes("word") && <FlagField label={t("settings.words")} flag={options.words} />}
      {can?.speakers && <FlagField label={t("settings.speakers")} flag={options.speakers} />}
    </>
  );
}

function FlagField({ label, flag }: { label: string; flag: Signal<boolean> }) {
  return (
    <label class="check">
      <input type="checkbox" checked={flag.value} onChange={(event) => (flag.value = event.currentTarget.checked)} />
      {label}
    </label>
  );
}

export const transcribe: View = { name: "transcribe", title: "transcribe.title", component: Transcribe, isInNavigation: true };
