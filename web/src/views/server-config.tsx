/** The config: whether its files are valid now, and reading them again. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { describeError, requestJson } from "../api/client";
import { t } from "../i18n";
import { ErrorMessage } from "../parts/error-message";

interface ConfigCheck {
  readonly valid: boolean;
  readonly files: readonly string[];
  readonly errors: readonly string[];
  readonly warnings: readonly string[];
}

type Reload = Readonly<Record<"added" | "changed" | "removed" | "later", readonly string[]>> & { readonly default_model?: string };

export function ConfigPanel() {
  const check = useSignal<ConfigCheck | null>(null);
  const reload = useSignal<Reload | null>(null);
  const problem = useSignal("");
  const run = async (step: () => Promise<void>) => {
    problem.value = "";
    try {
      await step();
    } catch (error) {
      problem.value = describeError(error);
    }
  };
  const examine = () => run(async () => void (check.value = await requestJson<ConfigCheck>("api/config/check")));
  const apply = () => run(async () => void (reload.value = await requestJson<Reload>("api/reload", { method: "POST" })));
  useEffect(() => void examine(), []);
  return (
    <>
      <div class="toolbar">
        <button type="button" onClick={() => void examine()}>
          {t("server.config.check")}
        </button>
        <button type="button" onClick={() => void apply()}>
          {t("server.config.reload")}
        </button>
      </div>
      <ErrorMessage text={problem.value} />
      {check.value && <CheckResult check={check.value} />}
      {reload.value && <ReloadResult reload={reload.value} />}
    </>
  );
}

function CheckResult({ check }: { check: ConfigCheck }) {
  return (
    <div role="status">
      <p>
        <span class={`badge ${check.valid ? "badge-ready" : "badge-failed"}`}>{t(check.valid ? "server.config.valid" : "server.config.invalid")}</span>
      </p>
      <TextList title={t("server.config.errors")} items={check.errors} />
      <TextList title={t("server.config.warnings")} items={check.warnings} />
      <TextList title={t("server.config.files")} items={check.files} none={t("server.config.nofiles")} />
    </div>
  );
}

function ReloadResult({ reload }: { reload: Reload }) {
  const kinds = ["added", "changed", "removed", "later"] as const;
  const changes = kinds.filter((kind) => reload[kind].length);
  return (
    <div role="status">
      <h2>{t("server.config.reloaded")}</h2>
      {changes.length === 0 && <p>{t("server.config.same")}</p>}
      {changes.map((kind) => (
        <TextList key={kind} title={t(`server.config.${kind}`)} items={reload[kind]} />
      ))}
    </div>
  );
}

function TextList({ title, items, none = "" }: { title: string; items: readonly string[]; none?: string }) {
  if (!items.length && !none) return null;
  return (
    <>
      <h2>{title}</h2>
      {items.length ? (
        <ul>
          {items.map((item) => (
            <li key={item}>{item}</li>
          ))}
        </ul>
      ) : (
        <p>{none}</p>
      )}
    </>
  );
}
