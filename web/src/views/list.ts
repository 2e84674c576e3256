/** All views of the page, in the order of the navigation. */

import type { ComponentType } from "preact";
import type { MessageKey } from "../i18n";
import { history } from "./history";
import { live } from "./live";
import { read } from "./read";
import { server } from "./server";
import { speak } from "./speak";
import { transcribe } from "./transcribe";

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

export const views: readonly View[] = [transcribe, live, read, speak, history, server];
