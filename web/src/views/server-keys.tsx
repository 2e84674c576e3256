/** API keys and how much each was used since the server started. */

import { formatDate, t } from "../i18n";
import { ErrorMessage } from "../parts/error-message";
import { formatClock } from "../transcript/clock";
import { Table, usePolled } from "./server-shared";

interface KeyUse {
  readonly name: string;
  readonly scopes: readonly string[];
  readonly models: readonly string[];
  readonly expires: string | null;
  readonly requests: number;
  readonly refused: number;
  readonly in_progress: number;
  readonly audio_seconds: number;
  readonly last_used_at: number | null;
}

const EVERY_MS = 5000;

export function KeysPanel() {
  const keys = usePolled<{ keys: KeyUse[] }>("api/keys", EVERY_MS);
  const listed = keys.data.value?.keys;
  const heads = ["name", "rights", "models", "requests", "refused", "audio", "used", "expires"] as const;
  return (
    <>
      <ErrorMessage text={keys.error.value} />
      {listed?.length === 0 && <p class="hint">{t("server.keys.none")}</p>}
      {listed && listed.length > 0 && (
        <Table label={t("server.keys")} heads={heads.map((head) => t(`server.keys.${head}`))}>
          {listed.map((key) => (
            <tr key={key.name}>
              <th scope="row">{key.name}</th>
              <td>{key.scopes.join(", ")}</td>
              <td>{key.models.join(", ") || t("server.keys.all")}</td>
              <td>
                {key.requests}
                {key.in_progress > 0 && <small>{t("server.keys.running", { count: key.in_progress })}</small>}
              </td>
              <td>{key.refused}</td>
              <td>{formatClock(key.audio_seconds)}</td>
              <td>{key.last_used_at ? formatDate(key.last_used_at * 1000) : ""}</td>
              <td>{key.expires ? formatDate(Date.parse(key.expires)) : ""}</td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}
