/** Files that the user drops, pastes or chooses: anywhere on the page. */

import { signal } from "@preact/signals";

export const isDragging = signal(false);

/** Takes files, and returns whether it did. */
type FileHandler = (files: readonly File[]) => boolean;
const handlers: FileHandler[] = [];

/** Add a handler of files. The latest one is asked first. Returns a function that removes it. */
export function handleFiles(handler: FileHandler): () => void {
  handlers.push(handler);
  return () => void handlers.splice(handlers.indexOf(handler), 1);
}

export function receiveFiles(files: readonly File[]): void {
  if (files.length) handlers.findLast((handler) => handler(files));
}

/** Make the whole page the target of drops. */
export function listenForFiles(): void {
  let depth = 0;
  const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    isDragging.value = true;
  });
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) isDragging.value = false;
  });
  document.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    depth = 0;
    isDragging.value = false;
    if (!event.dataTransfer || !hasFiles(event)) return;
    event.preventDefault();
    void listDroppedFiles(event.dataTransfer).then(receiveFiles);
  });
  document.addEventListener("paste", (event) => {
    const files = Array.from(event.clipboardData?.files ?? []);
    if (files.length) event.preventDefault();
    receiveFiles(files);
  });
}

/** The files of a drop, those in folders as well. */
async function listDroppedFiles(transfer: DataTransfer): Promise<File[]> {
  const entries = Array.from(transfer.items, (item) => item.webkitGetAsEntry());
  const plain = Array.from(transfer.files);
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const found = await Promise.all(entries.map((entry) => (entry ? listEntry(entry) : [])));
  return found.flat();
}

async function listEntry(entry: FileSystemEntry): Promise<File[]> {
  if (entry.isFile) return [await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))];
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: File[] = [];
  for (;;) {
    // A reader returns at most a hundred entries at a time.
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return found;
    for (const inner of entries) if (!inner.name.startsWith(".")) found.push(...(await listEntry(inner)));
  }
}

/** Let the browser save a file. */
export function saveFile(name: string, content: BlobPart, type: string): void {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** Put text on the clipboard. Without https browsers have no clipboard, but still copy a selection. */
export async function copyText(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
