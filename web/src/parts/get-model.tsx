import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { describeError, requestJson } from "../api/client";
import { loadModels, pullModel, type PullStep } from "../api/models";
import { formatSize, t } from "../i18n";
import { options } from "../options";
import { ErrorMessage } from "./error-message";

/** Downloads a model by its name on the hub, with progress, and chooses it. */
export function GetModel() {
  const name = useSignal("");
  const known = useSignal<readonly string[]>([]);
  const step = useSignal<PullStep | null>(null);
  const error = useSignal("");
  const pulling = useRef<AbortController | null>(null);
  useEffect(() => () => pulling.current?.abort(), []);
  const listKnown = async () => {
    if (known.value.length) return;
    const list = await requestJson<{ data: { id: string }[] }>("v1/registry").catch(() => ({ data: [] }));
    known.value = list.data.map((model) => model.id);
  };
  const pull = async (event: Event) => {
    event.preventDefault();
    if (pulling.current || !name.value.trim()) return;
    pulling.current = new AbortController();
    error.value = "";
    try {
      await pullModel(name.value.trim(), (next) => (step.value = next), pulling.current.signal);
      await loadModels();
      options.model.value = name.value.trim();
      name.value = "";
    } catch (failure) {
      if (!pulling.current.signal.aborted) error.value = describeError(failure);
    } finally {
      pulling.current = null;
      step.value = null;
    }
  };
  return (
    <form class="get-model" onSubmit={pull}>
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
        <button type="button" onClick={() => pulling.current?.abort()}>
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
