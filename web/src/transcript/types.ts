/** A transcript as the page holds it. Times are seconds. */

export interface Word {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

/** A stretch of text with its times: a line of the transcript, and of subtitles. */
export interface Cue {
  readonly id: number;
  readonly start: number;
  readonly end: number;
  readonly text: string;
  /** The times of the words, as the model heard them. After an edit they may differ from the text. */
  readonly words?: readonly Word[];
  readonly speaker?: string;
}

/** The facts of a transcript, without its text. */
export interface TranscriptInfo {
  readonly id: string;
  /** The recording's file name. */
  readonly name: string;
  readonly size: number;
  readonly created: number;
  readonly edited?: number;
  readonly model: string;
  readonly language: string;
  readonly task: "transcribe" | "translate";
  readonly duration: number;
  /** The beginning of the text, for lists. */
  readonly excerpt: string;
  readonly warnings: readonly string[];
}

export interface Transcript extends TranscriptInfo {
  readonly cues: readonly Cue[];
  /** Names of speakers, by the model's labels. */
  readonly speakers?: Readonly<Record<string, string>>;
}
