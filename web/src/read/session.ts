/** A transcript that is open: its text with all edits, what is selected, and whether the edits are stored. */

import { computed, effect, signal, type ReadonlySignal, type Signal } from "@preact/signals";
import { saveTranscript } from "../store";
import type { Cues } from "../transcript/cues";
import { recordEdit, redoEdit, startHistory, undoEdit, type EditHistory } from "../transcript/undo";
import type { Transcript } from "../transcript/types";
import { Player } from "./player";

/** The parts of a transcript that edits change. */
export interface Draft {
  readonly cues: Cues;
  readonly speakers: Readonly<Record<string, string>>;
}

/** A cue that is being edited. `offset` is where the caret begins. */
export interface Editing {
  readonly id: number;
  readonly offset: number;
}

/** Milliseconds after the last edit before it is stored. */
const SAVE_DELAY_MS = 400;

/** Whether there are edits that are not stored: leaving the page would lose them. */
export const hasUnsavedEdits = signal(false);

export class ReadSession {
  readonly player = new Player();
  readonly edits: Signal<EditHistory<Draft>>;
  readonly cues: ReadonlySignal<Cues>;
  readonly speakers: ReadonlySignal<Draft["speakers"]>;
  readonly selected = signal<number | null>(null);
  readonly editing = signal<Editing | null>(null);
  /** Whether the text scrolls along with the player. */
  readonly isFollowing = signal(true);
  readonly #saved: Signal<Draft>;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #stop: () => void;

  constructor(readonly original: Transcript) {
    const draft = { cues: original.cues, speakers: original.speakers ?? {} };
    this.#saved = signal(draft);
    this.edits = signal(startHistory<Draft>(draft));
    this.cues = computed(() => this.edits.value.present.cues);
    this.speakers = computed(() => this.edits.value.present.speakers);
    this.#stop = effect(() => {
      const isChanged = this.edits.value.present !== this.#saved.value;
      clearTimeout(this.#timer);
      hasUnsavedEdits.value = isChanged;
      if (isChanged) this.#timer = setTimeout(() => void this.save(), SAVE_DELAY_MS);
    });
  }

  /** The transcript as it stands. */
  get transcript(): Transcript {
    const { cues, speakers } = this.edits.peek().present;
    const isEdited = this.edits.peek().past.length > 0;
    return { ...this.original, cues, speakers, ...(isEdited ? { edited: Date.now() } : {}) };
  }

  /** Take in an edit of the cues. */
  apply(cues: Cues): void {
    const { present } = this.edits.value;
    if (cues !== present.cues) this.edits.value = recordEdit(this.edits.value, { ...present, cues });
  }

  /** Give a speaker a name, everywhere. */
  renameSpeaker(label: string, name: string): void {
    const { present } = this.edits.value;
    if ((present.speakers[label] ?? label) === name) return;
    this.edits.value = recordEdit(this.edits.value, { ...present, speakers: { ...present.speakers, [label]: name } });
  }

  undo(): void {
    this.editing.value = null;
    this.edits.value = undoEdit(this.edits.value);
  }

  redo(): void {
    this.editing.value = null;
    this.edits.value = redoEdit(this.edits.value);
  }

  /** Store the edits now. */
  async save(): Promise<void> {
    clearTimeout(this.#timer);
    const draft = this.edits.peek().present;
    if (draft === this.#saved.peek()) return;
    if (!(await saveTranscript(this.transcript))) return;
    this.#saved.value = draft;
    if (this.edits.peek().present === draft) hasUnsavedEdits.value = false;
  }

  close(): void {
    this.#stop();
    this.player.close();
    void this.save();
  }
}
