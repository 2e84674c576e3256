import { Component, createRef } from "preact";
import { t } from "../i18n";
import { Icon } from "../parts/icon";
import { formatClock, formatExact, parseClock } from "../transcript/clock";
import {
  findWordAtOffset,
  insertCue,
  measureReadingSpeed,
  mergeCues,
  removeCue,
  setSpeaker,
  setText,
  setTimes,
  splitCue,
} from "../transcript/cues";
import type { Cue } from "../transcript/types";
import { timeWords } from "../transcript/words";
import { findOffset, textId } from "./highlights";
import type { ReadSession } from "./session";

/** Characters a second above which a subtitle is hard to read. */
const FAST = 20;

interface CueRowProps {
  readonly session: ReadSession;
  readonly cue: Cue;
  readonly isSelected: boolean;
  /** Where the caret begins while the cue is edited; undefined while it is not. */
  readonly caret: number | undefined;
  readonly isTabStop: boolean;
  /** The name of the speaker, and the number of the colour. */
  readonly speaker: string;
  readonly color: number;
  readonly isSpeakerShown: boolean;
  /** The page's language. A new one renders the row again, with other labels. */
  readonly language: string;
  /** The same stretch in another transcript. */
  readonly beside: preact.ComponentChildren;
}

/** One cue: its time, its text, and while it is selected the tools to change it. Renders only if it changed. */
export class CueRow extends Component<CueRowProps> {
  override shouldComponentUpdate(next: CueRowProps): boolean {
    return (Object.keys(next) as (keyof CueRowProps)[]).some((name) => next[name] !== this.props[name]);
  }

  override render({ session, cue, isSelected, caret, isTabStop, speaker, color, isSpeakerShown, beside }: CueRowProps) {
    const speed = measureReadingSpeed(cue);
    return (
      <li id={`cue-${cue.id}`} class={isSelected ? "cue selected" : "cue"} data-id={cue.id}>
        <button
          type="button"
          class="time"
          tabIndex={isTabStop ? 0 : -1}
          aria-label={t("read.playFrom", { time: formatClock(cue.start) })}
          onClick={() => this.#seek(cue.start)}
        >
          {formatClock(cue.start)}
        </button>
        <div class="cue-body">
          {isSpeakerShown && <span class={`speaker color-${color}`}>{speaker}</span>}
          {caret === undefined ? (
            <p id={textId(cue.id)} dir="auto" class={cue.text ? "text" : "text empty"} onClick={this.#click} onDblClick={this.#edit}>
              {cue.text}
            </p>
          ) : (
            <CueEditor session={session} cue={cue} caret={caret} />
          )}
          {isSelected && <CueTools session={session} cue={cue} />}
        </div>
        {beside && (
          <p class="beside" dir="auto">
            {beside}
          </p>
        )}
        <span class={speed > FAST ? "speed fast" : "speed"} title={t("read.speedTitle")}>
          {t("read.cps", { speed: speed.toFixed(0) })}
        </span>
      </li>
    );
  }

  #seek(time: number): void {
    const { session, cue } = this.props;
    session.selected.value = cue.id;
    session.isFollowing.value = true;
    session.player.seek(time);
  }

  readonly #click = (event: MouseEvent & { currentTarget: HTMLElement }) => {
    if (getSelection()?.isCollapsed === false) return;
    const { cue } = this.props;
    const offset = findOffset(event.currentTarget, event.clientX, event.clientY);
    const word = offset === undefined ? undefined : findWordAtOffset(timeWords(cue), offset);
    this.#seek(word?.start ?? cue.start);
  };

  readonly #edit = (event: MouseEvent & { currentTarget: HTMLElement }) => {
    const { session, cue } = this.props;
    const offset = findOffset(event.currentTarget, event.clientX, event.clientY) ?? cue.text.length;
    getSelection()?.removeAllRanges();
    session.selected.value = cue.id;
    session.editing.value = { id: cue.id, offset };
  };
}

interface CueEditorProps {
  readonly session: ReadSession;
  readonly cue: Cue;
  readonly caret: number;
}

/** The text as a field. Leaving it keeps the text: a click elsewhere loses nothing. */
class CueEditor extends Component<CueEditorProps> {
  readonly #area = createRef<HTMLTextAreaElement>();
  #isOver = false;

  override componentDidMount(): void {
    const area = this.#area.current;
    area?.focus();
    area?.setSelectionRange(this.props.caret, this.props.caret);
    this.#resize();
  }

  override componentWillUnmount(): void {
    this.#keep();
  }

  override render({ cue }: CueEditorProps) {
    return (
      <textarea
        ref={this.#area}
        class="editor"
        rows={1}
        dir="auto"
        aria-label={t("read.editLabel", { time: formatClock(cue.start) })}
        defaultValue={cue.text}
        onInput={this.#resize}
        onKeyDown={this.#pressKey}
        onBlur={() => this.#finish(true)}
      />
    );
  }

  readonly #resize = () => {
    const area = this.#area.current;
    if (!area) return;
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };

  readonly #pressKey = (event: KeyboardEvent & { currentTarget: HTMLTextAreaElement }) => {
    if (event.isComposing) return;
    const { session, cue } = this.props;
    if (event.key === "Escape") this.#finish(false);
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const offset = event.currentTarget.selectionStart;
      const text = event.currentTarget.value;
      this.#isOver = true;
      session.editing.value = null;
      session.apply(splitCue(setText(session.cues.value, cue.id, text), cue.id, offset));
    } else if (event.key === "Enter" && !event.shiftKey) this.#finish(true);
    else return;
    event.preventDefault();
    event.stopPropagation();
    focusCue(cue.id);
  };

  #finish(isKept: boolean): void {
    if (isKept) this.#keep();
    this.#isOver = true;
    if (this.props.session.editing.value?.id === this.props.cue.id) this.props.session.editing.value = null;
  }

  #keep(): void {
    const { session, cue } = this.props;
    const area = this.#area.current;
    if (this.#isOver || !area) return;
    this.#isOver = true;
    session.apply(setText(session.cues.peek(), cue.id, area.value.trim()));
  }
}

/** Move the keyboard's focus to a cue. At once: the user's next key must find it there. */
export function focusCue(id: number): void {
  document.querySelector<HTMLElement>(`#cue-${id} .time`)?.focus({ preventScroll: true });
}

function CueTools({ session, cue }: { session: ReadSession; cue: Cue }) {
  const { player } = session;
  const cues = () => session.cues.value;
  const splitHere = () => {
    const word = timeWords(cue).find((one) => one.start >= player.time.value - 0.05);
    session.apply(splitCue(cues(), cue.id, word?.offset ?? 0));
  };
  const changeTime = (edge: "start" | "end", text: string) => {
    const time = parseClock(text);
    if (time === undefined) return;
    session.apply(edge === "start" ? setTimes(cues(), cue.id, time, cue.end) : setTimes(cues(), cue.id, cue.start, time));
  };
  return (
    <div class="tools">
      <button type="button" onClick={() => (session.editing.value = { id: cue.id, offset: cue.text.length })}>
        {t("read.edit")}
      </button>
      <button type="button" onClick={splitHere} title={t("read.splitTitle")}>
        {t("read.split")}
      </button>
      <button type="button" onClick={() => session.apply(mergeCues(cues(), cue.id))}>
        {t("read.merge")}
      </button>
      <button type="button" onClick={() => session.apply(insertCue(cues(), cue.id))}>
        {t("read.insert")}
      </button>
      <button type="button" class="danger" onClick={() => session.apply(removeCue(cues(), cue.id))}>
        {t("delete")}
      </button>
      {(["start", "end"] as const).map((edge) => (
        <span key={edge} class="edge">
          <input
            aria-label={t(`read.${edge}`)}
            value={formatExact(cue[edge])}
            onChange={(event) => {
              changeTime(edge, event.currentTarget.value);
              event.currentTarget.value = formatExact(cue[edge]);
            }}
          />
          <button type="button" title={t(`read.${edge}Here`)} aria-label={t(`read.${edge}Here`)} onClick={() => changeTime(edge, player.time.value.toFixed(3))}>
            <Icon name="here" />
          </button>
        </span>
      ))}
      <input
        class="speaker-name"
        aria-label={t("read.speaker")}
        placeholder={t("read.speaker")}
        list="speakers"
        value={cue.speaker ? session.speakers.value[cue.speaker] || cue.speaker : ""}
        onChange={(event) => session.apply(setSpeaker(cues(), cue.id, findLabel(session, event.currentTarget.value.trim())))}
      />
    </div>
  );
}

/** The label of a speaker's name. */
function findLabel(session: ReadSession, name: string): string {
  return Object.entries(session.speakers.value).find(([, given]) => given === name)?.[0] ?? name;
}
