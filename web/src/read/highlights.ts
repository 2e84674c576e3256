/** Marks places in text without elements of their own: a transcript of 30,000 words stays 3,000 paragraphs. */

const isSupported = typeof CSS !== "undefined" && "highlights" in CSS && typeof Highlight === "function";

/** A place in the text of a cue. */
export interface TextPlace {
  readonly cue: number;
  readonly start: number;
  readonly end: number;
}

/** The id of the element with the text of a cue. */
export function textId(cue: number): string {
  return `text-${cue}`;
}

/** Mark places under a name that the style sheet knows, and no others. */
export function highlight(name: "word" | "hit" | "current-hit", places: readonly TextPlace[]): void {
  if (!isSupported) return;
  const ranges = places.map(buildRange).filter((range) => range !== undefined);
  if (ranges.length) CSS.highlights.set(name, new Highlight(...ranges));
  else CSS.highlights.delete(name);
}

function buildRange(place: TextPlace): Range | undefined {
  const node = document.getElementById(textId(place.cue))?.firstChild;
  if (!(node instanceof Text) || place.end > node.length) return undefined;
  const range = document.createRange();
  range.setStart(node, place.start);
  range.setEnd(node, place.end);
  return range;
}

/** The place in a text element's text at a point on the screen; undefined where the browser cannot tell. */
export function findOffset(element: Element, x: number, y: number): number | undefined {
  if (document.caretPositionFromPoint) {
    const position = document.caretPositionFromPoint(x, y);
    return position && position.offsetNode.parentNode === element ? position.offset : undefined;
  }
  const range = document.caretRangeFromPoint?.(x, y);
  return range && range.startContainer.parentNode === element ? range.startOffset : undefined;
}
