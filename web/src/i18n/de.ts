/** German. */

import type { Dictionary } from ".";

export const de: Dictionary = {
  cancel: "Abbrechen",
  delete: "Löschen",
  loading: "Wird geladen …",
  retry: "Noch einmal",
};
