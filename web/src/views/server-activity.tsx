/** Requests: those in progress as they change, and the last finished ones with their details. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { apiKey, describeError, isRefusal, request, requestJson } from "../api/client";
import { EventParser, readText } from "../api/events";
import { may } from "../api/rights";
import { formatDate, formatSize, t } from "../i18n";
import { ErrorMessage } from "../parts/error-message";
import { formatMs, Table } from "./server-shared";

interface RunningRequest {
  readonly id: string;
  readonly timestamp: string;
  readonly model: string;
  readonly req_path: string;
  readonly method: string;
  readonly req_headers: Readonly<Record<string, string>>;
  readonly remote_ip: string;
  readonly resp_headers: Readonly<Record<string, string>>;
  readonly resp_bytes: number;
  readonly elapsed_ms: number;
}

interface FinishedRequest {
  readonly id: number;
  readonly timestamp: string;
  readonly model: string;
  readonly req_path: string;
  readonly resp_content_type: string;
  readonly resp_status_code: number;
  readonly duration_ms: number;
  readonly error_msg?: string;
  readonly tokens: Readonly<Record<string, number>>;
}

type Change =
  | { operation: "snapshot"; requests: RunningRequest[] }
  | { operation: "upsert"; request: RunningRequest }
  | { operation: "remove"; id: string };

const ROWS = 100;
const RETRY_MS = 2000;

export function ActivityPanel() {
  const running = useSignal<ReadonlyMap<string, RunningRequest>>(new Map());
  const finished = useSignal<readonly FinishedRequest[]>([]);
  const problem = useSignal("");
  const refresh = async (signal: AbortSignal) => {
    const page = await requestJson<{ data: FinishedRequest[] }>(`api/metrics/activity?limit=${ROWS}`, { signal });
    finished.value = page.data;
  };
  useEffect(() => {
    const controller = new AbortController();
    const apply = (change: Change) => {
      const changed = new Map(change.operation === "snapshot" ? [] : running.value);
      if (change.operation === "snapshot") for (const one of change.requests) changed.set(one.id, one);
      else if (change.operation === "upsert") changed.set(change.request.id, change.request);
      else changed.delete(change.id);
      running.value = changed;
    };
    void followEvents(controller.signal, {
      onOpen: () => {
        problem.value = "";
        return refresh(controller.signal);
      },
      onChange: apply,
      onFinished: () => refresh(controller.signal),
      onError: (message) => (problem.value = message),
    });
    return () => controller.abort();
  }, [apiKey.value]);
  return (
    <>
      <ErrorMessage text={problem.value} />
      <h2>{t("server.running")}</h2>
      {running.value.size ? <RunningTable requests={[...running.value.values()]} /> : <p class="hint">{t("server.running.none")}</p>}
      <h2>{t("server.finished")}</h2>
      {finished.value.length ? <FinishedTable requests={finished.value} /> : <p class="hint">{t("server.finished.none")}</p>}
    </>
  );
}

interface EventHandlers {
  onOpen(): Promise<void>;
  onChange(change: Change): void;
  onFinished(): Promise<void>;
  onError(message: string): void;
}

/** Follow the server's events until `signal`, or until a key is refused. A stream that ends is opened again. */
async function followEvents(signal: AbortSignal, handlers: EventHandlers): Promise<void> {
  while (!signal.aborted) {
    try {
      const response = await request("api/events", { signal });
      await handlers.onOpen();
      const parser = new EventParser();
      for await (const piece of readText(response)) {
        const events = parser.feed(piece).map((event) => JSON.parse(event.data) as { type: string; data: string });
        for (const event of events) if (event.type === "inflight") handlers.onChange(JSON.parse(event.data) as Change);
        if (events.some((event) => event.type === "activity")) await handlers.onFinished();
      }
    } catch (error) {
      if (signal.aborted) return;
      handlers.onError(describeError(error));
      if (isRefusal(error)) return;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function RunningTable({ requests }: { requests: readonly RunningRequest[] }) {
  const cancel = (id: string) => request(`api/inflight/${encodeURIComponent(id)}/cancel`, { method: "POST" }).catch(() => undefined);
  return (
    <Table label={t("server.running")} heads={[t("server.path"), t("server.model"), t("server.client"), t("server.time"), t("server.sent"), t("server.details")]}>
      {requests.map((one) => (
        <tr key={one.id}>
          <th scope="row">
            {one.method} {one.req_path}
          </th>
          <td>{one.model}</td>
          <td>{one.remote_ip}</td>
          <td>{formatMs(one.elapsed_ms)}</td>
          <td>{formatSize(one.resp_bytes)}</td>
          <td>
            <Details label={one.id} facts={{ id: one.id, ...one.req_headers, ...prefix("→ ", one.resp_headers) }} />
            {may("manage") && (
              <button type="button" onClick={() => void cancel(one.id)} aria-label={`${t("cancel")}: ${one.id}`}>
                {t("cancel")}
              </button>
            )}
          </td>
        </tr>
      ))}
    </Table>
  );
}

function prefix(mark: string, facts: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(facts).map(([name, value]) => [mark + name, value]));
}

function FinishedTable({ requests }: { requests: readonly FinishedRequest[] }) {
  return (
    <Table label={t("server.finished")} heads={[t("server.when"), t("server.path"), t("server.model"), t("server.status"), t("server.time"), t("server.details")]}>
      {requests.map((one) => (
        <tr key={one.id}>
          <td>{formatDate(Date.parse(one.timestamp))}</td>
          <th scope="row">{one.req_path}</th>
          <td>{one.model}</td>
          <td>
            <span class={`badge ${one.resp_status_code >= 400 ? "badge-failed" : "badge-ready"}`}>{one.resp_status_code}</span>
          </td>
          <td>{formatMs(one.duration_ms)}</td>
          <td>
            <Details label={String(one.id)} facts={describeFinished(one)} />
          </td>
        </tr>
      ))}
    </Table>
  );
}

function describeFinished(one: FinishedRequest): Record<string, string> {
  const tokens = Object.entries(one.tokens).filter(([, count]) => count > 0);
  return {
    id: String(one.id),
    timestamp: one.timestamp,
    "content-type": one.resp_content_type,
    ...Object.fromEntries(tokens.map(([name, count]) => [name, String(count)])),
    ...(one.error_msg ? { error: one.error_msg } : {}),
  };
}

function Details({ label, facts }: { label: string; facts: Readonly<Record<string, string>> }) {
  return (
    <details>
      <summary aria-label={`${t("server.details")}: ${label}`}>{t("server.details")}</summary>
      <dl>
        {Object.entries(facts).map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}
