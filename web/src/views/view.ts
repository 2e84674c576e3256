/** A view of the page, as the navigation, the help and the keyboard use it. */

import type { ComponentType } from "preact";
import type { MessageKey } from "../i18n";

export interface Shortcut {
  /** Keys as they are printed on a keyboard, such as `Ctrl+Z`. */
  readonly keys: string;
  readonly label: MessageKey;
}

export interface View {
  /** The first part of the route: `#/NAME/...`. */
  readonly name: string;
  readonly title: MessageKey;
  readonly component: ComponentType<{ readonly args: readonly string[] }>;
  readonly isInNavigation: boolean;
  /** Whether the key in use may see anything of it; a view without it is for everybody. */
  isVisible?(): boolean;
  readonly shortcuts?: readonly Shortcut[];
}
