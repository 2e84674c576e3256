/** The user's own files, for the player: nothing is uploaded for it. They last as long as the page. */

const files = new Map<string, File>();

/** Remember the recording of a transcript. */
export function keepRecording(transcript: string, file: File): void {
  files.set(transcript, file);
}

export function forgetRecording(transcript: string): void {
  files.delete(transcript);
}

export function findRecording(transcript: string): File | undefined {
  return files.get(transcript);
}

/** Seconds that a file lasts, as far as this browser can tell; 0 if it cannot. */
export function measureDuration(file: File): Promise<number> {
  if (!file.size) return Promise.resolve(0);
  return new Promise((resolve) => {
    const media = document.createElement("audio");
    const address = URL.createObjectURL(file);
    const finish = (duration: number) => {
      clearTimeout(timer);
      media.onloadedmetadata = media.onerror = null;
      media.removeAttribute("src");
      URL.revokeObjectURL(address);
      resolve(Number.isFinite(duration) ? duration : 0);
    };
    const timer = setTimeout(() => finish(0), 10_000);
    media.preload = "metadata";
    media.onloadedmetadata = () => finish(media.duration);
    media.onerror = () => finish(0);
    media.src = address;
  });
}
