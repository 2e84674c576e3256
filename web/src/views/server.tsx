/** The server: models, requests, logs, config and keys, as far as the key in use may see them. */

import { may, rights, type Scope } from "../api/rights";
import { t, type MessageKey } from "../i18n";
import { link } from "../router";
import type { View } from "./view";
import { ActivityPanel } from "./server-activity";
import { ConfigPanel } from "./server-config";
import { KeysPanel } from "./server-keys";
import { LogsPanel } from "./server-logs";
import { ModelsPanel } from "./server-models";
import "./server.css";

const PANELS = [
  { name: "models", scope: "models", Panel: ModelsPanel },
  { name: "activity", scope: "logs", Panel: ActivityPanel },
  { name: "logs", scope: "logs", Panel: LogsPanel },
  { name: "config", scope: "manage", Panel: ConfigPanel },
  { name: "keys", scope: "manage", Panel: KeysPanel },
] as const satisfies readonly { name: string; scope: Scope; Panel: () => unknown }[];

function Server({ args }: { args: readonly string[] }) {
  const shown = PANELS.filter(({ scope }) => may(scope));
  const current = shown.find(({ name }) => name === args[0]) ?? shown[0];
  return (
    <div class="page server">
      <h1>{t("server.title")}</h1>
      {shown.length > 1 && (
        <nav class="tabs" aria-label={t("server.title")}>
          {shown.map(({ name }) => (
            <a key={name} href={link("server", name)} aria-current={name === current?.name ? "page" : undefined}>
              {t(`server.${name}` as MessageKey)}
            </a>
          ))}
        </nav>
      )}
      {current ? <current.Panel /> : <p>{rights.value ? t("server.nothing") : t("server.wait")}</p>}
    </div>
  );
}

export const server: View = {
  name: "server",
  title: "server.title",
  component: Server,
  isInNavigation: true,
  isVisible: () => PANELS.some(({ scope }) => may(scope)),
};
