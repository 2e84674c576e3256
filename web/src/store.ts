/** The history: transcripts in this browser's IndexedDB. Without one (a private window may forbid it) they last as long as the page. */

import { signal } from "@preact/signals";
import { describeError } from "./api/client";
import { forgetRecording } from "./recordings";
import { joinTexts } from "./transcript/words";
import type { Transcript, TranscriptInfo } from "./transcript/types";

const INFOS = "infos";
const BODIES = "transcripts";

/** Infos of all transcripts, the latest first. */
export const history = signal<readonly TranscriptInfo[]>([]);
/** The reason why transcripts are not kept; empty if they are. */
export const storeProblem = signal("");

/** Transcripts that could not be stored. */
const inMemory = new Map<string, Transcript>();
let database: Promise<IDBDatabase> | null = null;

function openDatabase(): Promise<IDBDatabase> {
  database ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open("eardrum", 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore(INFOS, { keyPath: "id" });
      opening.result.createObjectStore(BODIES, { keyPath: "id" });
    };
    opening.onsuccess = () => {
      // Another tab with a newer version of the page may have to change the database.
      opening.result.onversionchange = () => {
        opening.result.close();
        database = null;
      };
      // The browser closes it too, such as when the user deletes the page's data.
      opening.result.onclose = () => (database = null);
      resolve(opening.result);
    };
    opening.onerror = () => reject(opening.error ?? new Error("IndexedDB"));
  });
  database.catch(() => (database = null)); // the next one tries again
  return database;
}

function waitFor<T>(wanted: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    wanted.onsuccess = () => resolve(wanted.result);
    wanted.onerror = () => reject(wanted.error ?? new Error("IndexedDB"));
  });
}

/** Whether there are transcripts that leaving the page would lose. */
export function hasUnstoredTranscripts(): boolean {
  return inMemory.size > 0;
}

/** A new id. `crypto.randomUUID` needs https. */
export function createTranscriptId(): string {
  return crypto.getRandomValues(new Uint32Array(3)).join("-");
}

/** Run a transaction, and wait until it is written. */
async function write(change: (infos: IDBObjectStore, bodies: IDBObjectStore) => void): Promise<void> {
  const transaction = (await openDatabase()).transaction([INFOS, BODIES], "readwrite");
  change(transaction.objectStore(INFOS), transaction.objectStore(BODIES));
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error("IndexedDB"));
  });
}

function describe(transcript: Transcript): TranscriptInfo {
  const { cues, speakers: _, ...info } = transcript;
  const excerpt = joinTexts(cues.slice(0, 12).map((cue) => cue.text)).slice(0, 200);
  return { ...info, excerpt };
}

function noteProblem(error: unknown): void {
  storeProblem.value = describeError(error);
}

/** Keep a transcript, new or edited. True if it is stored. */
export async function saveTranscript(transcript: Transcript): Promise<boolean> {
  const info = describe(transcript);
  history.value = [info, ...history.value.filter((other) => other.id !== info.id)].sort((one, other) => other.created - one.created);
  try {
    await write((infos, bodies) => {
      infos.put(info);
      bodies.put(transcript);
    });
    inMemory.delete(transcript.id);
    storeProblem.value = "";
    return true;
  } catch (error) {
    inMemory.set(transcript.id, transcript);
    noteProblem(error);
    return false;
  }
}

/** Read a transcript; undefined if there is none. */
export async function loadTranscript(id: string): Promise<Transcript | undefined> {
  const held = inMemory.get(id);
  if (held) return held;
  try {
    const store = (await openDatabase()).transaction(BODIES).objectStore(BODIES);
    return (await waitFor(store.get(id))) as Transcript | undefined;
  } catch (error) {
    noteProblem(error);
    return undefined;
  }
}

/** Read the list of transcripts. */
export async function loadHistory(): Promise<void> {
  try {
    const store = (await openDatabase()).transaction(INFOS).objectStore(INFOS);
    const infos = (await waitFor(store.getAll())) as TranscriptInfo[];
    const held = Array.from(inMemory.values(), describe);
    history.value = [...infos.filter((info) => !inMemory.has(info.id)), ...held].sort((one, other) => other.created - one.created);
  } catch (error) {
    noteProblem(error);
  }
}

/** Delete transcripts, and forget their recordings. */
export async function deleteTranscripts(ids: readonly string[]): Promise<void> {
  history.value = history.value.filter((info) => !ids.includes(info.id));
  for (const id of ids) {
    inMemory.delete(id);
    forgetRecording(id);
  }
  try {
    await write((infos, bodies) => {
      for (const id of ids) {
        infos.delete(id);
        bodies.delete(id);
      }
    });
  } catch (error) {
    noteProblem(error);
  }
}
