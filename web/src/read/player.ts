/** The player of the user's own recording. */

import { computed, signal, type ReadonlySignal, type Signal } from "@preact/signals";
import { isNumber, rememberedSignal } from "../storage";

export const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2] as const;

export const speed = rememberedSignal("speed", 1, isNumber);

export class Player {
  readonly time = signal(0);
  readonly duration = signal(0);
  readonly isPlaying = signal(false);
  readonly hasVideo = signal(false);
  /** Whether the browser can play the file; false as long as there is none. */
  readonly isReady: Signal<boolean> = signal(false);
  readonly hasFailed = signal(false);
  readonly address = signal("");
  /** Tenths of a second, for what need not follow every frame. */
  readonly tenths: ReadonlySignal<number> = computed(() => Math.floor(this.time.value * 10) / 10);
  #media: HTMLVideoElement | null = null;
  #frame = 0;

  get media(): HTMLVideoElement | null {
    return this.#media;
  }

  /** Use a file. Nothing is uploaded: the browser plays it from the disk. */
  open(file: File): void {
    this.close();
    this.hasFailed.value = false;
    this.address.value = URL.createObjectURL(file);
  }

  close(): void {
    cancelAnimationFrame(this.#frame);
    if (this.address.value) URL.revokeObjectURL(this.address.value);
    this.address.value = "";
    this.isReady.value = this.isPlaying.value = this.hasVideo.value = false;
  }

  /** Follow a media element; null if it is gone. */
  attach(media: HTMLVideoElement | null): void {
    this.#media = media;
    if (!media) return;
    media.playbackRate = speed.value;
    media.onloadedmetadata = () => {
      this.duration.value = Number.isFinite(media.duration) ? media.duration : 0;
      this.hasVideo.value = media.videoWidth > 0;
      this.isReady.value = true;
      media.playbackRate = speed.value;
      if (this.time.value) media.currentTime = this.time.value;
    };
    media.ondurationchange = () => (this.duration.value = Number.isFinite(media.duration) ? media.duration : this.duration.value);
    media.onerror = () => (this.hasFailed.value = true);
    media.onplay = () => {
      this.isPlaying.value = true;
      this.#follow();
    };
    media.onpause = media.onended = () => (this.isPlaying.value = false);
    // While it plays, every frame reads the time: `timeupdate` comes four times a second, and words are shorter.
    media.ontimeupdate = media.onseeked = () => (this.time.value = media.currentTime);
  }

  seek(time: number): void {
    const bounded = Math.max(0, this.duration.value ? Math.min(time, this.duration.value) : time);
    this.time.value = bounded;
    if (this.#media && this.isReady.value) this.#media.currentTime = bounded;
  }

  skip(seconds: number): void {
    this.seek(this.time.value + seconds);
  }

  toggle(): void {
    // A file that is not read yet plays as soon as it is.
    if (!this.#media || !this.address.value) return;
    if (this.#media.paused) void this.#media.play().catch(() => undefined);
    else this.#media.pause();
  }

  setSpeed(value: number): void {
    speed.value = value;
    if (this.#media) this.#media.playbackRate = value;
  }

  #follow(): void {
    this.#frame = requestAnimationFrame(() => {
      if (!this.#media || this.#media.paused) return;
      this.time.value = this.#media.currentTime;
      this.#follow();
    });
  }
}
