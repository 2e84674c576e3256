/** Live captions from a microphone or a tab, and saving them as a transcript. */

import { signal, useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { loadModels, modelsError } from "../api/models";
import { t } from "../i18n";
import { ErrorMessage } from "../parts/error-message";
import { LanguageField, ModelField } from "../parts/model-fields";
import type { View } from "./view";
import { findObstacle, listMicrophones } from "./live-capture";
import * as store from "./live-store";
import "./live.css";

const microphones = signal<readonly MediaDeviceInfo[]>([]);

async function refreshMicrophones(): Promise<void> {
  microphones.value = await listMicrophones();
}

function Live() {
  const showsCaptions = useSignal(false);
  useEffect(() => {
    void loadModels();
    void refreshMicrophones();
    navigator.mediaDevices?.addEventListener("devicechange", refreshMicrophones);
    return () => navigator.mediaDevices?.removeEventListener("devicechange", refreshMicrophones);
  }, []);
  const hasText = store.lines.value.length > 0 || store.partial.value !== null;
  return (
    <div class="page">
      <h1>{t("live.title")}</h1>
      {findObstacle("microphone") === "insecure" ? <InsecureHelp /> : <Controls onCaptions={() => (showsCaptions.value = true)} />}
      <ErrorMessage text={describeProblem()} />
      {hasText || store.isRunning.value ? <LiveText class="live-text" /> : <p>{t("live.intro")}</p>}
      {showsCaptions.value && <Captions onClose={() => (showsCaptions.value = false)} />}
    </div>
  );
}

/** Browsers give pages on plain http a microphone on this machine only. */
function InsecureHelp() {
  const port = location.port || "80";
  return (
    <section class="panel" aria-label={t("live.fault.insecure")}>
      <p>{t("live.insecure.why", { address: location.origin })}</p>
      <ul>
        <li>
          {t("live.insecure.tunnel")} <code>{`ssh -L ${port}:127.0.0.1:${port} ${location.hostname}`}</code>
          {", "}
          <code>{`http://localhost:${port}`}</code>
        </li>
        <li>
          {t("live.insecure.tls")} <code>eardrum serve --tls-certificate FILE --tls-key FILE</code>
        </li>
        <li>{t("live.insecure.proxy")}</li>
        <li>
          {t("live.insecure.flag")} <code>chrome://flags/#unsafely-treat-insecure-origin-as-secure</code>
        </li>
      </ul>
    </section>
  );
}

function Controls({ onCaptions }: { onCaptions: () => void }) {
  const isRunning = store.isRunning.value;
  const begin = async () => {
    await store.start();
    await refreshMicrophones(); // their names are known now
  };
  useShortcuts(() => void begin(), onCaptions);
  return (
    <>
      <section class="panel fields" aria-label={t("live.settings")}>
        <SourceField isFixed={isRunning} />
        <ModelFields isFixed={isRunning} />
      </section>
      <div class="toolbar" role="group" aria-label={t("live.title")}>
        {isRunning ? (
          <button type="button" class="danger" onClick={store.stop} disabled={store.state.value === "finishing"}>
            {t("live.stop")}
          </button>
        ) : (
          <button type="button" class="primary" onClick={() => void begin()}>
            {store.lines.value.length ? t("live.continue") : t("live.start")}
          </button>
        )}
        <button type="button" onClick={onCaptions}>
          {t("live.captions")}
        </button>
        <LineActions />
        <meter class="live-level" min={0} max={1} low={0.02} value={store.level.value} aria-label={t("live.level")} />
        <span class="live-state" role="status">
          {t(`live.state.${store.state.value}`)}
        </span>
      </div>
    </>
  );
}

function SourceField({ isFixed }: { isFixed: boolean }) {
  const choose = (value: string) => {
    store.source.value = value === "tab" ? "tab" : "microphone";
    if (value !== "tab") store.deviceId.value = value;
  };
  const chosen = store.source.value === "tab" ? "tab" : store.deviceId.value;
  const named = microphones.value.filter((device) => device.label && device.deviceId !== "default");
  // Browsers tell names only after the permission.
  const isUnnamed = store.source.value === "microphone" && chosen !== "" && !named.some((device) => device.deviceId === chosen);
  return (
    <label class="field">
      {t("live.source")}
      <select disabled={isFixed} value={chosen} onChange={(event) => choose(event.currentTarget.value)}>
        <option value="">{t("live.source.microphone")}</option>
        {isUnnamed && <option value={chosen}>{t("live.source.last")}</option>}
        {named.map((device) => (
          <option key={device.deviceId} value={device.deviceId}>
            {device.label}
          </option>
        ))}
        {!findObstacle("tab") && <option value="tab">{t("live.source.tab")}</option>}
      </select>
    </label>
  );
}

function ModelFields({ isFixed }: { isFixed: boolean }) {
  const model = store.findLiveModel();
  return (
    <>
      <ModelField value={store.model} isDisabled={isFixed} />
      <LanguageField model={model} value={store.language} isDisabled={isFixed} />
      {model?.capabilities?.tasks?.includes("translate") && (
        <label class="check">
          <input
            type="checkbox"
            disabled={isFixed}
            checked={store.isTranslated.value}
            onChange={(event) => (store.isTranslated.value = event.currentTarget.checked)}
          />
          {t("settings.task.translate")}
        </label>
      )}
    </>
  );
}

function LineActions() {
  const isIdle = !store.isRunning.value;
  if (!store.lines.value.length) return null;
  const discard = () => {
    if (store.isSaved.value || confirm(t("live.discard"))) store.clear();
  };
  return (
    <>
      <button type="button" disabled={!isIdle} onClick={() => void store.save()}>
        {t("live.save")}
      </button>
      {store.hasAudio() && (
        <button type="button" disabled={!isIdle} onClick={store.saveAudio}>
          {t("live.saveAudio")}
        </button>
      )}
      <button type="button" disabled={!isIdle} onClick={discard}>
        {t("live.clear")}
      </button>
    </>
  );
}

function describeProblem(): string {
  const problem = store.problem.value;
  if (!problem) return modelsError.value;
  return "fault" in problem ? t(`live.fault.${problem.fault}`) : problem.message;
}

/** The lines so far and the one in progress. The latter keeps its element when it becomes final, so nothing moves. */
function LiveText({ class: name }: { class: string }) {
  const box = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const partial = store.partial.value;
  useLayoutEffect(() => {
    if (box.current && follows.current) box.current.scrollTop = box.current.scrollHeight;
  });
  const watch = () => {
    const element = box.current;
    if (element) follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 40;
  };
  return (
    <div ref={box} class={name} role="log" aria-live="polite" aria-label={t("live.text")} tabIndex={0} onScroll={watch}>
      {store.lines.value.map((line) => (
        <Line key={line.key} stable={line.text} tentative="" />
      ))}
      {partial && <Line key={partial.key} stable={partial.stable} tentative={partial.tentative} />}
    </div>
  );
}

/** A line. While it may change, it does not become lower than it was: what stands above stays where it is. */
function Line({ stable, tentative }: { stable: string; tentative: string }) {
  const paragraph = useRef<HTMLParagraphElement>(null);
  const highest = useRef(0);
  useLayoutEffect(() => {
    const element = paragraph.current;
    if (!element) return;
    highest.current = tentative ? Math.max(highest.current, element.offsetHeight) : 0;
    element.style.minHeight = tentative ? `${highest.current}px` : "";
  }, [stable, tentative]);
  return (
    <p ref={paragraph}>
      {stable}
      {tentative && <span class="tentative">{(stable && !/^\s/.test(tentative) ? " " : "") + tentative}</span>}
    </p>
  );
}

/** The text in large letters over the whole screen, for an audience. */
function Captions({ onClose }: { onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const element = dialog.current;
    if (!element) return;
    element.showModal();
    void element.requestFullscreen?.().catch(() => undefined); // refused, as on a phone: the dialog fills the window
    const leave = () => {
      if (!document.fullscreenElement) element.close();
    };
    document.addEventListener("fullscreenchange", leave);
    return () => {
      document.removeEventListener("fullscreenchange", leave);
      if (document.fullscreenElement) void document.exitFullscreen();
    };
  }, []);
  const resize = (by: number) => (store.captionSize.value = Math.min(12, Math.max(2, store.captionSize.value + by)));
  return (
    <dialog ref={dialog} class="captions" aria-label={t("live.captions")} onClose={onClose}>
      <div class="captions-text" style={{ fontSize: `${store.captionSize.value}vmax` }}>
        <LiveText class="captions-lines" />
      </div>
      <div class="captions-bar">
        <button type="button" onClick={() => resize(-1)} aria-label={t("live.smaller")}>
          A−
        </button>
        <button type="button" onClick={() => resize(1)} aria-label={t("live.larger")}>
          A+
        </button>
        <button type="button" onClick={() => dialog.current?.close()}>
          {t("close")}
        </button>
      </div>
    </dialog>
  );
}

/** Keys of this view, wherever the focus is but in fields. */
function useShortcuts(begin: () => void, showCaptions: () => void): void {
  const act = useRef({ begin, showCaptions });
  act.current = { begin, showCaptions };
  // Before the first frame: a key that is pressed then must not be lost.
  useLayoutEffect(() => {
    const press = (event: KeyboardEvent) => {
      const target = event.target instanceof HTMLElement ? event.target : document.body;
      if (event.defaultPrevented || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
      if (target.matches("input, select, textarea") || document.querySelector("dialog[open]:not(.captions)")) return;
      const key = event.key.toLowerCase();
      if (key === "r") store.isRunning.value ? store.stop() : act.current.begin();
      else if (key === "f") act.current.showCaptions();
      else return;
      event.preventDefault();
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, []);
}

export const live: View = {
  name: "live",
  title: "live.title",
  component: Live,
  isInNavigation: true,
  shortcuts: [
    { keys: "R", label: "keys.record" },
    { keys: "F", label: "keys.captions" },
    { keys: "Esc", label: "keys.leave" },
  ],
};
