import { useSignalEffect } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import type { Cue } from "../transcript/types";
import type { ReadSession } from "./session";

/** Plays the recording. A video is shown, with the transcript as its subtitles. */
export function Media({ session }: { session: ReadSession }) {
  const { player } = session;
  const element = useRef<HTMLVideoElement>(null);
  // Before the first frame: the file may be there sooner, and tells it once.
  useLayoutEffect(() => {
    player.attach(element.current);
    return () => player.attach(null);
  }, [player]);
  useSubtitles(session, element);
  return (
    <video
      ref={element}
      class={player.hasVideo.value ? "video" : "video hidden"}
      src={player.address.value || undefined}
      preload="auto"
      playsInline
      aria-label={t("player.video")}
      onClick={() => player.toggle()}
    />
  );
}

/** Keeps the video's subtitles equal to the cues. */
function useSubtitles(session: ReadSession, element: preact.RefObject<HTMLVideoElement>): void {
  const track = useRef<TextTrack | null>(null);
  const shown = useRef(new Map<Cue, VTTCue>());
  useSignalEffect(() => {
    const media = element.current;
    if (!media || !session.player.hasVideo.value) return;
    track.current ??= media.addTextTrack("subtitles", session.original.name, session.original.language);
    track.current.mode = "showing";
    const wanted = new Set(session.cues.value);
    for (const [cue, subtitle] of shown.current) {
      if (wanted.has(cue)) continue;
      track.current.removeCue(subtitle);
      shown.current.delete(cue);
    }
    for (const cue of wanted) {
      if (shown.current.has(cue) || !cue.text) continue;
      // The text of a VTTCue is WebVTT, in which these begin tags and entities.
      const text = cue.text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
      const subtitle = new VTTCue(cue.start, cue.end, text);
      track.current.addCue(subtitle);
      shown.current.set(cue, subtitle);
    }
  });
}
