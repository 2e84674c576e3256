import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { keyQuestion } from "../api/client";
import { t } from "../i18n";

/** Asks for the API key when the server wants one. */
export function KeyDialog() {
  const question = keyQuestion.value;
  const dialog = useRef<HTMLDialogElement>(null);
  const [key, setKey] = useState("");
  const [isRemembered, setRemembered] = useState(false);
  useLayoutEffect(() => {
    if (question) dialog.current?.showModal();
    else dialog.current?.close();
    setKey("");
  }, [question]);
  const submit = (event: Event) => {
    event.preventDefault();
    if (key.trim()) question?.answer(key.trim(), isRemembered);
  };
  return (
    <dialog ref={dialog} class="dialog" onCancel={() => question?.cancel()} aria-labelledby="key-title">
      <form onSubmit={submit}>
        <h2 id="key-title">{t("key.title")}</h2>
        <p>{question?.reason || t("key.explanation")}</p>
        <label class="field">
          {t("key.label")}
          <input type="password" autocomplete="off" value={key} onInput={(event) => setKey(event.currentTarget.value)} />
        </label>
        <label class="check">
          <input type="checkbox" checked={isRemembered} onChange={(event) => setRemembered(event.currentTarget.checked)} />
          {t("key.remember")}
        </label>
        <div class="row end">
          <button type="button" onClick={() => question?.cancel()}>
            {t("cancel")}
          </button>
          <button type="submit" class="primary">
            {t("key.use")}
          </button>
        </div>
      </form>
    </dialog>
  );
}
