import { useEffect, useLayoutEffect } from "preact/hooks";
import { apiKey, setKey } from "./api/client";
import { followRights } from "./api/rights";
import { isDragging, listenForFiles } from "./files";
import { dictionaries, language, t } from "./i18n";
import { isDownloading } from "./parts/get-model";
import { HelpDialog } from "./parts/help-dialog";
import { KeyDialog } from "./parts/key-dialog";
import { isQueueBusy } from "./queue";
import { hasUnsavedEdits } from "./read/session";
import { link, route } from "./router";
import { hasUnstoredTranscripts } from "./store";
import { THEMES, theme, type Theme } from "./theme";
import { views } from "./views/list";
import { isLiveTextUnsaved } from "./views/live-store";

export function App() {
  // Before the first frame: the browser would open a file that is dropped then.
  useLayoutEffect(listenForFiles, []);
  useLayoutEffect(warnBeforeLeaving, []);
  useEffect(followRights, []);
  const view = views.find((one) => one.name === route.value.view) ?? views[0];
  const title = view ? t(view.title) : "";
  useEffect(() => {
    document.title = `${title} · Eardrum`;
  }, [title]);
  return (
    <>
      <a class="skip" href="#main" onClick={skipToMain}>
        {t("skip")}
      </a>
      <header class="top">
        <a class="brand" href={link("transcribe")}>
          <svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
            <path d="M7 13v6M13 8v16M19 12v8M25 14v4" stroke="currentColor" stroke-width="3" stroke-linecap="round" />
          </svg>
          Eardrum
        </a>
        <nav aria-label={t("nav.label")}>
          {views
            .filter((one) => one.isInNavigation && (one.isVisible?.() ?? true))
            .map((one) => (
              <a key={one.name} href={link(one.name)} aria-current={one === view ? "page" : undefined}>
                {t(one.title)}
              </a>
            ))}
        </nav>
        <PageSettings />
      </header>
      <main id="main" tabIndex={-1}>
        {view && <view.component key={view.name} args={route.value.args} />}
      </main>
      {isDragging.value && <div class="drop-hint">{t("drop.hint")}</div>}
      <KeyDialog />
    </>
  );
}

/** Leaving the page ends uploads, downloads and live captions, and loses texts that are not stored. */
function warnBeforeLeaving() {
  window.addEventListener("beforeunload", (event) => {
    const isLossy = isQueueBusy() || hasUnsavedEdits.value || hasUnstoredTranscripts() || isLiveTextUnsaved() || isDownloading();
    if (isLossy) event.preventDefault();
  });
}

function skipToMain(event: Event) {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function PageSettings() {
  return (
    <div class="page-settings">
      {apiKey.value && (
        <button type="button" class="quiet" onClick={() => setKey("", false)}>
          {t("key.forget")}
        </button>
      )}
      <select aria-label={t("language.label")} value={language.value} onChange={(event) => (language.value = event.currentTarget.value)}>
        {Object.entries(dictionaries).map(([code, { label }]) => (
          <option key={code} value={code}>
            {label}
          </option>
        ))}
      </select>
      <select aria-label={t("theme.label")} value={theme.value} onChange={(event) => (theme.value = event.currentTarget.value as Theme)}>
        {THEMES.map((one) => (
          <option key={one} value={one}>
            {t(`theme.${one}`)}
          </option>
        ))}
      </select>
      <HelpDialog />
    </div>
  );
}
