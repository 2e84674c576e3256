/** Models: their state, memory and queue; load, unload and download. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { describeError, encodePath, request } from "../api/client";
import { loadModels, models, modelsError, type Model } from "../api/models";
import { may } from "../api/rights";
import { formatSize, t } from "../i18n";
import { ErrorMessage } from "../parts/error-message";
import { GetModel } from "../parts/get-model";
import { formatClock } from "../transcript/clock";
import { Table, usePolled } from "./server-shared";

interface ProcessStatus {
  readonly id: string;
  readonly state: string;
  readonly requests: number;
  readonly size: number;
  readonly size_vram: number;
  readonly device: string;
  readonly compute_type: string;
  readonly device_reason?: string;
  readonly pid: number;
  readonly ttl_remaining: number | null;
}

interface UnloadedModel {
  readonly id: string;
  readonly message: string;
}

interface Processes {
  readonly models: readonly ProcessStatus[];
  readonly gone: readonly UnloadedModel[];
}

/** Each request is a line in the server's log. */
const EVERY_MS = 5000;

export function ModelsPanel() {
  const processes = usePolled<Processes>("api/ps", EVERY_MS);
  const problem = useSignal("");
  const busy = useSignal<ReadonlySet<string>>(new Set());
  const states = processes.data.value?.models.map(({ id, state }) => `${id} ${state}`).join();
  useEffect(() => void loadModels(), [states]);
  const act = async (id: string, method: "POST" | "DELETE") => {
    busy.value = new Set([...busy.value, id]);
    problem.value = "";
    try {
      await request(`api/ps/${encodePath(id)}`, { method });
    } catch (error) {
      problem.value = describeError(error);
    }
    busy.value = new Set([...busy.value].filter((other) => other !== id));
    processes.refresh();
  };
  const running = new Map(processes.data.value?.models.map((one) => [one.id, one]));
  const gone = new Map(processes.data.value?.gone.toReversed().map((one) => [one.id, one.message]));
  return (
    <>
      <ErrorMessage text={problem.value || processes.error.value || modelsError.value} />
      <Table
        label={t("server.models")}
        heads={[
          t("server.model"),
          t("server.state"),
          ...(may("manage") ? [t("server.action")] : []),
          t("server.memory"),
          t("server.queue"),
          t("server.ttl"),
        ]}
      >
        {models.value.filter(isOwnModel).map((model) => (
          <ModelRow key={model.id} model={model} process={running.get(model.id)} gone={gone.get(model.id) ?? ""} isBusy={busy.value.has(model.id)} act={act} />
        ))}
      </Table>
      {may("manage") && <GetModel />}
    </>
  );
}

/** Aliases and selectors stand for models that have a row of their own. */
function isOwnModel(model: Model): boolean {
  return (model.meta?.llamaswap?.type ?? "model") === "model";
}

interface RowProps {
  readonly model: Model;
  readonly process: ProcessStatus | undefined;
  readonly gone: string;
  readonly isBusy: boolean;
  act(id: string, method: "POST" | "DELETE"): Promise<void>;
}

function ModelRow({ model, process, gone, isBusy, act }: RowProps) {
  const state = process?.state ?? model.state ?? "";
  return (
    <tr>
      <th scope="row">
        {model.name || model.id}
        <small>{[model.engine, process?.device, process?.compute_type].filter(Boolean).join(" · ")}</small>
        {process?.device_reason && <small>{process.device_reason}</small>}
      </th>
      <td>
        <span class={`badge badge-${state}`}>{state}</span>
        {!process && gone && <small>{gone}</small>}
      </td>
      {may("manage") && (
        <td>
          <button
            type="button"
            disabled={isBusy}
            onClick={() => void act(model.id, process ? "DELETE" : "POST")}
            aria-label={`${t(process ? "server.unload" : "server.load")}: ${model.id}`}
          >
            {isBusy ? "…" : t(process ? "server.unload" : "server.load")}
          </button>
        </td>
      )}
      <td>
        {process ? formatSize(process.size) : ""}
        {process && process.size_vram > 0 && <small>GPU {formatSize(process.size_vram)}</small>}
      </td>
      <td>{process?.requests ?? ""}</td>
      <td>{process?.ttl_remaining == null ? "" : formatClock(process.ttl_remaining)}</td>
    </tr>
  );
}
