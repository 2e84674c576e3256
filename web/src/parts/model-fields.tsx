import type { Signal } from "@preact/signals";
import { defaultModel, listLanguages, listSpeechModels, models, type Model } from "../api/models";
import { nameLanguage, t } from "../i18n";
import { fitLanguage } from "../options";

interface ModelFieldProps {
  /** The name that is chosen; empty for the default model. */
  readonly value: Signal<string>;
  readonly isDisabled?: boolean;
}

/** Chooses one of the server's models that transcribe. */
export function ModelField({ value, isDisabled = false }: ModelFieldProps) {
  const speech = listSpeechModels(models.value);
  const isUnlisted = value.value && !speech.some((one) => one.id === value.value);
  return (
    <label class="field">
      {t("settings.model")}
      <select disabled={isDisabled} value={value.value} onChange={(event) => (value.value = event.currentTarget.value)}>
        <option value="">{t("settings.defaultModel", { model: defaultModel.value || "…" })}</option>
        {speech.map((one) => (
          <option key={one.id} value={one.id}>
            {one.name || one.id}
          </option>
        ))}
        {isUnlisted && (
          <option value={value.value}>{models.value.length ? t("settings.missingModel", { model: value.value }) : value.value}</option>
        )}
      </select>
    </label>
  );
}

interface LanguageFieldProps {
  readonly model: Model | undefined;
  /** The code of the language; empty for none. */
  readonly value: Signal<string>;
  readonly isDisabled?: boolean;
}

/** Chooses the language that is spoken, among those of the model. */
export function LanguageField({ model, value, isDisabled = false }: LanguageFieldProps) {
  const codes = listLanguages(model);
  const isDetected = model?.capabilities?.detects_language ?? true;
  const named = codes.map((code) => ({ code, name: nameLanguage(code) })).sort((one, other) => one.name.localeCompare(other.name));
  const only = codes.length === 1 ? codes[0] : undefined;
  return (
    <label class="field">
      {t("settings.language")}
      <select
        value={only ?? fitLanguage(model, value.value)}
        disabled={isDisabled || Boolean(only)}
        onChange={(event) => (value.value = event.currentTarget.value)}
      >
        {!only && <option value="">{t(isDetected ? "settings.detectLanguage" : "settings.anyLanguage")}</option>}
        {named.map(({ code, name }) => (
          <option key={code} value={code}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}
