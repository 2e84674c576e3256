import { signal, useSignal } from "@preact/signals";
import { describeError, requestJson } from "../api/client";
import { findModel, listSpeechModels, loadModels, models, pullModel, type PullStep } from "../api/models";
import { formatSize, t } from "../i18n";
import { options } from "../options";
import { ErrorMessage } from "./error-message";

/** The step of the download in progress: it goes on while other views are open, and the server ends it with the request. */
const step = signal<PullStep | null>(null);
const error = signal("");
let pulling: AbortController | null = null;

/** Whether leaving the page would end a download. */
export function isDownloading(): boolean {
  return step.value !== null;
}

async function pull(name: string): Promise<void> {
  const controller = (pulling = new AbortController());
  step.value = { status: "" };
  error.value = "";
  try {
    await pullModel(name, (next) => (step.value = next), controller.signal);
    await loadModels();
    const [pulled] = listSpeechModels(models.value).filter((model) => model === findModel(models.value, name, ""));
    if (pulled) options.model.value = pulled.id;
  } catch (failure) {
    if (!controller.signal.aborted) error.value = describeError(failure);
  } finally {
    pulling = step.value = null;
  }
}

/** Downloads a model by its name on the hub, with progress. One that hears is chosen. */
export function GetModel() {
  const name = useSignal("");
  const known = useSignal<readonly string[]>([]);
  const listKnown = async () => {
    if (known.value.length) return;
    const list = await requestJson<{ data: { id: string }[] }>("v1/registry").catch(() => ({ data: [] }));
    known.value = list.data.map((model) => model.id);
  };
  const submit = async (event: Event) => {
    event.preventDefault();
    if (pulling || !name.value.trim()) return;
    await pull(name.value.trim());
    if (!error.value) name.value = "";
  };
  return (
    <form class="get-model" onSubmit={submit}>
      <label class="field wide">
        {t("pull.label")}
        <input list="known-models" value={name.value} onFocus={listKnown} onInput={(event) => (name.value = event.currentTarget.value)} />
      </label>
      <datalist id="known-models">
        {known.value.map((id) => (
          <option key={id} value={id} />
        ))}
      </datalist>
      {step.value ? (
        <button type="button" onClick={() => pulling?.abort()}>
          {t("cancel")}
        </button>
      ) : (
        <button type="submit">{t("pull.start")}</button>
      )}
      {step.value && <PullProgress step={step.value} />}
      <ErrorMessage text={error.value} />
    </form>
  );
}

function PullProgress({ step }: { step: PullStep }) {
  const done = step.completed ?? 0;
  const text = step.total ? `${formatSize(done)} / ${formatSize(step.total)}` : formatSize(done);
  return (
    <div class="bar wide">
      <progress max={1} value={step.total ? done / step.total : undefined} aria-label={t("pull.progress")} />
      <span>
        {step.file} {text}
      </span>
    </div>
  );
}
