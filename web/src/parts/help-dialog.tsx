import { Fragment } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import { views } from "../views/list";
import type { Shortcut } from "../views/view";
import "./help-dialog.css";

const EVERYWHERE: readonly Shortcut[] = [{ keys: "?", label: "keys.help" }];

/** Lists the keys of all views. `?` opens it, wherever the focus is but in a field. */
export function HelpDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  // Before the first frame: a key that is pressed then must not be lost.
  useLayoutEffect(() => {
    const press = (event: KeyboardEvent) => {
      const isField = event.target instanceof HTMLElement && event.target.matches("input, textarea, select");
      if (event.key !== "?" || isField || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      dialog.current?.showModal();
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, []);
  const label = t("keys.title");
  return (
    <>
      <button type="button" aria-label={label} title={label} onClick={() => dialog.current?.showModal()}>
        ?
      </button>
      <dialog ref={dialog} class="dialog" aria-labelledby="help-title">
        <h2 id="help-title">{label}</h2>
        <ShortcutList title={t("keys.everywhere")} shortcuts={EVERYWHERE} />
        {views.map((view) => view.shortcuts && <ShortcutList key={view.name} title={t(view.title)} shortcuts={view.shortcuts} />)}
        <div class="row end">
          <button type="button" onClick={() => dialog.current?.close()}>
            {t("close")}
          </button>
        </div>
      </dialog>
    </>
  );
}

function ShortcutList({ title, shortcuts }: { title: string; shortcuts: readonly Shortcut[] }) {
  return (
    <>
      <h3>{title}</h3>
      <dl class="shortcuts">
        {shortcuts.map(({ keys, label }) => (
          <Fragment key={keys}>
            <dt>
              <kbd>{keys}</kbd>
            </dt>
            <dd>{t(label)}</dd>
          </Fragment>
        ))}
      </dl>
    </>
  );
}
