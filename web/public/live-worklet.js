// Runs beside the page, in the audio thread: collects a tenth of a second of samples and hands them over as s16le.
// A file of its own, because the page's Content-Security-Policy allows no script from a blob.
registerProcessor("pcm", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
  }

  process([channels]) {
    const samples = channels?.[0];
    for (let at = 0; samples && at < samples.length; at++) {
      let sum = 0;
      for (const channel of channels) sum += channel[at];
      this.piece[this.filled++] = Math.max(-1, Math.min(1, sum / channels.length)) * 32767;
      if (this.filled === this.piece.length) {
        const full = this.piece;
        this.piece = new Int16Array(full.length);
        this.filled = 0;
        this.port.postMessage(full.buffer, [full.buffer]);
      }
    }
    return true;
  }
});
