import type { Signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { defaultModel, findModel, loadModels, models, modelsError, type Model } from "../api/models";
import { may } from "../api/rights";
import { handleFiles, receiveFiles } from "../files";
import { t } from "../i18n";
import { chooseOptions, givesWordTimes, options } from "../options";
import { GetModel } from "../parts/get-model";
import { LanguageField, ModelField } from "../parts/model-fields";
import { QueueList } from "../parts/queue-list";
import { addToQueue, queue } from "../queue";
import { go, route } from "../router";
import type { View } from "./view";

/** Put files into the queue, from whatever view they were dropped on. */
export function transcribeFiles(files: readonly File[]): boolean {
  void queueFiles(files);
  if (route.value.view !== "transcribe") go("transcribe");
  return true;
}

async function queueFiles(files: readonly File[]): Promise<void> {
  // The options depend on the model, and not every view has loaded the list.
  if (!models.value.length) await loadModels();
  addToQueue(files, chooseOptions(findModel(models.value, options.model.value, defaultModel.value)));
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
  const model = findModel(models.value, options.model.value, defaultModel.value);
  return (
    <section class="panel settings" aria-label={t("settings.label")}>
      {modelsError.value && (
        <p class="error" role="alert">
          {modelsError.value} <button onClick={() => void loadModels()}>{t("retry")}</button>
        </p>
      )}
      <div class="fields">
        <ModelField value={options.model} />
        <LanguageField model={model} value={options.language} />
        {model?.capabilities?.tasks?.includes("translate") && <TaskField />}
      </div>
      <details>
        <summary>{t("settings.more")}</summary>
        <HintFields model={model} />
        {may("manage") && <GetModel />}
      </details>
    </section>
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
      {givesWordTimes(model) && <FlagField label={t("settings.words")} flag={options.words} />}
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
