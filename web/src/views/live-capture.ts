/** Captures audio of a microphone or a browser tab as s16le mono, in pieces of a tenth of a second. */

import { describeError } from "../api/client";

export type CaptureSource = "microphone" | "tab";

/** Reasons why there is no audio. Each kind has a sentence of its own in the dictionaries (`live.fault.KIND`). */
export type CaptureFault = "insecure" | "unsupported" | "refused" | "missing" | "busy" | "silent-tab" | "ended" | "failed";

export class CaptureError extends Error {
  constructor(public readonly fault: CaptureFault, detail = "") {
    super(detail || fault);
  }
}

/** 16 kHz is what the models take: the browser resamples, and a third of the bytes is sent. */
const RATE = 16_000;

export interface Capture {
  readonly rate: number;
  /** Stop the devices. Further calls do nothing. */
  close(): void;
}

export interface CaptureOptions {
  source: CaptureSource;
  /** Of a microphone; empty: the system's own choice. */
  deviceId: string;
  onAudio(piece: ArrayBuffer): void;
  /** Called once when the device is gone or the person ended sharing, not after `close`. */
  onEnd(): void;
}

/** Find out whether this page may capture a source at all, before anybody is asked. */
export function findObstacle(source: CaptureSource): CaptureFault | null {
  if (!window.isSecureContext) return "insecure";
  const devices = navigator.mediaDevices;
  if (!devices || !window.AudioContext || !window.AudioWorkletNode) return "unsupported";
  if (source === "tab" && !devices.getDisplayMedia) return "unsupported";
  return null;
}

/** List the microphones. Browsers tell their names only after the first permission. */
export async function listMicrophones(): Promise<MediaDeviceInfo[]> {
  if (!navigator.mediaDevices?.enumerateDevices) return [];
  const found = await navigator.mediaDevices.enumerateDevices();
  return found.filter((device) => device.kind === "audioinput" && device.deviceId);
}

/**
 * Begin to capture.
 * @throws CaptureError if there is no device, or no permission.
 */
export async function openCapture(options: CaptureOptions): Promise<Capture> {
  const obstacle = findObstacle(options.source);
  if (obstacle) throw new CaptureError(obstacle);
  const stream = await openStream(options);
  let context: AudioContext | undefined;
  let open = true;
  const close = () => {
    if (!open) return;
    open = false;
    for (const track of stream.getTracks()) track.stop();
    void context?.close();
  };
  const end = () => {
    if (!open) return;
    close();
    options.onEnd();
  };
  for (const track of stream.getAudioTracks()) track.addEventListener("ended", end);
  try {
    const source = createSource(stream);
    context = source.context;
    await context.audioWorklet.addModule(new URL("live-worklet.js", document.baseURI));
    await context.resume();
    const pieces = new AudioWorkletNode(context, "pcm", { numberOfOutputs: 0 });
    pieces.port.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => {
      if (open) options.onAudio(data);
    };
    source.node.connect(pieces);
    return { rate: context.sampleRate, close };
  } catch (error) {
    close();
    throw new CaptureError("failed", String(error));
  }
}

async function openStream({ source, deviceId }: CaptureOptions): Promise<MediaStream> {
  try {
    if (source === "microphone") {
      return await navigator.mediaDevices.getUserMedia({ audio: deviceId ? { deviceId: { exact: deviceId } } : true });
    }
    // Browsers share a tab's sound only together with its picture.
    const stream = await navigator.mediaDevices.getDisplayMedia({ audio: true, video: true });
    if (stream.getAudioTracks().length) return stream;
    for (const track of stream.getTracks()) track.stop();
  } catch (error) {
    throw new CaptureError(describeRefusal(error), describeError(error));
  }
  throw new CaptureError("silent-tab");
}

function describeRefusal(error: unknown): CaptureFault {
  switch (error instanceof DOMException ? error.name : "") {
    case "NotAllowedError":
    case "SecurityError":
      return "refused";
    case "NotFoundError":
    case "OverconstrainedError":
      return "missing";
    case "NotReadableError":
    case "AbortError":
      return "busy";
    default:
      return "failed";
  }
}

function createSource(stream: MediaStream): { context: AudioContext; node: MediaStreamAudioSourceNode } {
  for (const options of [{ sampleRate: RATE }, {}]) {
    const context = new AudioContext(options);
    try {
      return { context, node: context.createMediaStreamSource(stream) };
    } catch {
      void context.close(); // Firefox does not resample a device: then the server does
    }
  }
  throw new CaptureError("failed");
}
