/** The route in the address's hash: `#/read/ID` is the view `read` with the argument `ID`. */

import { signal } from "@preact/signals";

export interface Route {
  readonly view: string;
  readonly args: readonly string[];
}

/** Parse a hash. An empty one is the view `transcribe`; a part that is not valid percent-encoding stays as it is. */
export function parseHash(hash: string): Route {
  const [view = "", ...args] = hash.replace(/^#?\/?/, "").split("/").map(decodePart);
  return { view: view || "transcribe", args: args.filter(Boolean) };
}

function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Build the hash of a view, for links. */
export function link(view: string, ...args: readonly string[]): string {
  return "#/" + [view, ...args].map(encodeURIComponent).join("/");
}

export const route = signal<Route>(parseHash(typeof location === "undefined" ? "" : location.hash));

/** Open a view. */
export function go(view: string, ...args: readonly string[]): void {
  location.hash = link(view, ...args);
}

if (typeof window !== "undefined") {
  window.addEventListener("hashchange", () => {
    route.value = parseHash(location.hash);
  });
}
