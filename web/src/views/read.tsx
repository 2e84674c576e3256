import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect } from "preact/hooks";
import { handleFiles } from "../files";
import { nameLanguage, t } from "../i18n";
import { ExportMenu } from "../parts/export-menu";
import { Icon } from "../parts/icon";
import { useBeside } from "../read/beside";
import { CueList } from "../read/cue-list";
import { PlayerBar } from "../read/player-bar";
import { SearchBar } from "../read/search";
import { ReadSession } from "../read/session";
import { SpeakerNames } from "../read/speakers";
import { Media } from "../read/video";
import { findRecording, keepRecording } from "../recordings";
import { link } from "../router";
import { loadTranscript, storeProblem } from "../store";
import { insertCue } from "../transcript/cues";
import { formatClock } from "../transcript/clock";
import type { View } from "./view";

function Read({ args }: { args: readonly string[] }) {
  const id = args[0] ?? "";
  const session = useSignal<ReadSession | null>(null);
  const isMissing = useSignal(false);
  useEffect(() => {
    let isGone = false;
    isMissing.value = false;
    void loadTranscript(id).then((transcript) => {
      if (isGone) return;
      if (!transcript) {
        isMissing.value = true;
        return;
      }
      const opened = new ReadSession(transcript);
      const recording = findRecording(id);
      if (recording) opened.player.open(recording);
      session.value = opened;
    });
    return () => {
      isGone = true;
      session.peek()?.close();
      session.value = null;
    };
  }, [id]);
  if (isMissing.value) return <NoTranscript />;
  return session.value ? <ReadPage key={id} session={session.value} /> : <p class="page">{t("loading")}</p>;
}

function NoTranscript() {
  return (
    <div class="page">
      <h1>{t("read.title")}</h1>
      <p>{t("read.none")}</p>
      <p>
        <a href={link("history")}>{t("history.title")}</a> · <a href={link("transcribe")}>{t("transcribe.title")}</a>
      </p>
    </div>
  );
}

function ReadPage({ session }: { session: ReadSession }) {
  const { original, player } = session;
  const choose = (file: File) => {
    keepRecording(original.id, file);
    player.open(file);
  };
  const { picker, beside } = useBeside(session);
  useShortcuts(session);
  // A recording dropped on its transcript is played; anything else is transcribed.
  useLayoutEffect(
    () =>
      handleFiles((files) => {
        const [file] = files;
        const isIts = files.length === 1 && file?.name === original.name && file.size === original.size;
        if (isIts && file) choose(file);
        return isIts;
      }),
    [session],
  );
  const facts = [
    formatClock(original.duration || player.duration.value),
    original.language && nameLanguage(original.language),
    original.model,
    t("read.cueCount", { count: session.cues.value.length }),
  ];
  return (
    <div class="page read">
      <h1>{original.name}</h1>
      <p class="hint">{facts.filter(Boolean).join(" · ")}</p>
      {original.warnings.map((warning) => (
        <p key={warning} class="warning">
          {warning}
        </p>
      ))}
      {storeProblem.value && <p class="error">{t("history.problem", { reason: storeProblem.value })}</p>}
      <div class="read-head">
        <Media session={session} />
        <Toolbar session={session}>{picker}</Toolbar>
      </div>
      <SpeakerNames session={session} />
      {session.cues.value.length ? (
        <CueList session={session} beside={beside.value} />
      ) : (
        <p>
          {t("read.empty")} <button onClick={() => session.apply(insertCue([], 0))}>{t("read.insert")}</button>
        </p>
      )}
      <PlayerBar session={session} onChoose={choose} />
    </div>
  );
}

function Toolbar({ session, children }: { session: ReadSession; children: preact.ComponentChildren }) {
  const { past, future } = session.edits.value;
  return (
    <div class="toolbar" role="toolbar" aria-label={t("read.toolbar")}>
      <button type="button" disabled={!past.length} onClick={() => session.undo()} title={`${t("read.undo")} (Ctrl+Z)`} aria-label={t("read.undo")}>
        <Icon name="undo" />
      </button>
      <button type="button" disabled={!future.length} onClick={() => session.redo()} title={`${t("read.redo")} (Ctrl+Shift+Z)`} aria-label={t("read.redo")}>
        <Icon name="redo" />
      </button>
      <SearchBar session={session} />
      {children}
      <ExportMenu load={() => Promise.resolve(session.transcript)} />
    </div>
  );
}

/** Keys of this view, wherever the focus is but in fields. */
function useShortcuts(session: ReadSession): void {
  // Before the first frame: a key that is pressed then must not be lost.
  useLayoutEffect(() => {
    const press = (event: KeyboardEvent) => {
      if (!event.defaultPrevented && !document.querySelector("dialog[open]") && pressKey(session, event)) event.preventDefault();
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, [session]);
}

/** Carry out a key. True if it has a meaning here. */
function pressKey(session: ReadSession, event: KeyboardEvent): boolean {
  const target = event.target instanceof HTMLElement ? event.target : document.body;
  const isCommand = event.ctrlKey || event.metaKey;
  if (isCommand && event.key.toLowerCase() === "f") {
    document.getElementById("search")?.focus();
    return true;
  }
  if (target.matches("input, textarea, select, summary, [contenteditable]")) return false;
  if (isCommand && event.key.toLowerCase() === "z") {
    if (event.shiftKey) session.redo();
    else session.undo();
    return true;
  }
  if (isCommand && event.key.toLowerCase() === "y") {
    session.redo();
    return true;
  }
  if (isCommand || event.altKey) return false;
  // Space on any other button presses it.
  if (event.key === " " && target.matches("button:not(.time), a")) return false;
  const { player } = session;
  const selected = session.selected.value;
  switch (event.key.length === 1 ? event.key.toLowerCase() : event.key) {
    case " ":
      player.toggle();
      return true;
    case "ArrowLeft":
      player.skip(-5);
      return true;
    case "ArrowRight":
      player.skip(5);
      return true;
    case "e":
    case "F2":
      if (selected === null) return false;
      session.editing.value = { id: selected, offset: session.cues.value.find((cue) => cue.id === selected)?.text.length ?? 0 };
      return true;
    default:
      return false;
  }
}

export const read: View = {
  name: "read",
  title: "read.title",
  component: Read,
  isInNavigation: false,
  shortcuts: [
    { keys: "Space", label: "keys.play" },
    { keys: "← →", label: "keys.skip" },
    { keys: "↑ ↓", label: "keys.move" },
    { keys: "Enter", label: "keys.seek" },
    { keys: "E", label: "keys.edit" },
    { keys: "Ctrl+Enter", label: "keys.split" },
    { keys: "Esc", label: "keys.cancel" },
    { keys: "Ctrl+Z", label: "keys.undo" },
    { keys: "Ctrl+Shift+Z", label: "keys.redo" },
    { keys: "Ctrl+F", label: "keys.search" },
  ],
};
