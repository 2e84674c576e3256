/** Dark or light: as the system has it, or as the user chose. */

import { effect } from "@preact/signals";
import { rememberedSignal } from "./storage";

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const isTheme = (value: unknown): value is Theme => THEMES.includes(value as Theme);

export const theme = rememberedSignal<Theme>("theme", "system", isTheme);

effect(() => {
  if (typeof document === "undefined") return;
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
});
