import { useSignal } from "@preact/signals";
import { copyText, saveFile } from "../files";
import { t } from "../i18n";
import { isNumber, rememberedSignal } from "../storage";
import { formatDocx } from "../transcript/docx";
import { formatTranscript, type SubtitleShape, type TextFormat } from "../transcript/formats";
import type { Transcript } from "../transcript/types";

const TYPES: Readonly<Record<TextFormat, string>> = {
  txt: "text/plain",
  srt: "application/x-subrip",
  vtt: "text/vtt",
  tsv: "text/tab-separated-values",
  json: "application/json",
};
const DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";

const maxLineWidth = rememberedSignal("maxLineWidth", 0, isNumber);
const maxLines = rememberedSignal("maxLines", 2, isNumber);

/** The shape of subtitles that the user chose. */
export function exportShape(): SubtitleShape {
  return { maxLineWidth: maxLineWidth.value, maxLines: maxLines.value };
}

/** The name of an exported file: the recording's, with another ending. */
export function nameFile(recording: string, format: string): string {
  return `${recording.replace(/\.[^.\s]{1,5}$/u, "") || "transcript"}.${format}`;
}

/** Saves a transcript as a file, or copies its text. */
export function ExportMenu({ load }: { load: () => Promise<Transcript | undefined> }) {
  const isCopied = useSignal(false);
  const save = async (format: TextFormat | "docx") => {
    const transcript = await load();
    if (!transcript) return;
    if (format === "docx") saveFile(nameFile(transcript.name, format), formatDocx(transcript), DOCX_TYPE);
    else saveFile(nameFile(transcript.name, format), formatTranscript(transcript, format, exportShape()), `${TYPES[format]};charset=utf-8`);
  };
  const copy = async () => {
    const transcript = await load();
    if (!transcript) return;
    await copyText(formatTranscript(transcript, "txt"));
    isCopied.value = true;
    setTimeout(() => (isCopied.value = false), 2000);
  };
  return (
    <details class="menu" onKeyDown={closeOnEscape}>
      <summary class="button">{t("export.title")}</summary>
      <div class="menu-body">
        <div class="row wrap">
          {(["txt", "srt", "vtt", "docx", "json", "tsv"] as const).map((format) => (
            <button key={format} onClick={() => void save(format)}>
              {format.toUpperCase()}
            </button>
          ))}
        </div>
        <button onClick={() => void copy()}>{t(isCopied.value ? "export.copied" : "export.copy")}</button>
        <fieldset class="row wrap">
          <legend>{t("export.shape")}</legend>
          <NumberField label={t("export.width")} value={maxLineWidth} />
          <NumberField label={t("export.lines")} value={maxLines} />
        </fieldset>
      </div>
    </details>
  );
}

function NumberField({ label, value }: { label: string; value: { value: number } }) {
  return (
    <label class="field narrow">
      {label}
      <input
        type="number"
        min={0}
        max={200}
        value={value.value}
        onChange={(event) => (value.value = Math.max(0, Math.floor(event.currentTarget.valueAsNumber) || 0))}
      />
    </label>
  );
}

function closeOnEscape(event: KeyboardEvent & { currentTarget: HTMLDetailsElement }) {
  if (event.key !== "Escape" || !event.currentTarget.open) return;
  event.currentTarget.open = false;
  event.currentTarget.querySelector("summary")?.focus();
}
