import { useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { findText, replaceText } from "../transcript/cues";
import { scrollTo } from "./cue-list";
import { highlight } from "./highlights";
import type { ReadSession } from "./session";

/** Places that are marked. More would slow down the page, and nobody looks at them. */
const MAX_MARKED = 2000;

/** Searches the text, and replaces what was found. */
export function SearchBar({ session }: { session: ReadSession }) {
  const search = useSignal("");
  const replacement = useSignal("");
  const current = useSignal(0);
  const hits = useComputed(() => findText(session.cues.value, search.value));
  useSignalEffect(() => {
    // The text elements are drawn after the cues have changed.
    const found = hits.value;
    const one = found[Math.min(current.value, found.length - 1)];
    requestAnimationFrame(() => {
      highlight("hit", found.slice(0, MAX_MARKED));
      highlight("current-hit", one ? [one] : []);
    });
  });
  useEffect(
    () => () => {
      highlight("hit", []);
      highlight("current-hit", []);
    },
    [],
  );
  const show = (index: number) => {
    const count = hits.value.length;
    if (!count) return;
    current.value = (index + count) % count;
    const hit = hits.value[current.value];
    const row = hit && document.getElementById(`cue-${hit.cue}`);
    if (row) scrollTo(row);
  };
  const pressKey = (event: KeyboardEvent) => {
    if (event.key === "Enter") show(current.value + (event.shiftKey ? -1 : 1));
    if (event.key === "Escape") search.value = "";
  };
  const count = hits.value.length;
  return (
    <div class="search" role="search">
      <input
        id="search"
        type="search"
        aria-label={t("search.label")}
        placeholder={t("search.label")}
        value={search.value}
        onKeyDown={pressKey}
        onInput={(event) => {
          search.value = event.currentTarget.value;
          current.value = 0;
          show(0);
        }}
      />
      {search.value.trim() && (
        <>
          <span role="status">{count ? `${Math.min(current.value, count - 1) + 1} / ${count}` : t("search.none")}</span>
          <button type="button" aria-label={t("search.previous")} onClick={() => show(current.value - 1)}>
            ↑
          </button>
          <button type="button" aria-label={t("search.next")} onClick={() => show(current.value + 1)}>
            ↓
          </button>
          <input
            aria-label={t("search.replacement")}
            placeholder={t("search.replacement")}
            value={replacement.value}
            onInput={(event) => (replacement.value = event.currentTarget.value)}
          />
          <button
            type="button"
            disabled={!count}
            onClick={() => session.apply(replaceText(session.cues.value, search.value.trim(), replacement.value))}
          >
            {t("search.replaceAll")}
          </button>
        </>
      )}
    </div>
  );
}
