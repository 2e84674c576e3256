import { describe, expect, it } from "vitest";
import { apiKey, buildSubprotocols, isTemporary, parseError } from "../src/api/client";
import { EventParser, readLines } from "../src/api/events";
import { TranscriptStream, type TextDelta } from "../src/api/transcription";
import { link, parseHash } from "../src/router";

const STREAM =
  'event: transcript.text.delta\r\ndata: {"type": "transcript.text.delta", "delta": "Ünï", "start": 0, "end": 1.5}\r\n\r\n' +
  ': a comment\n\ndata: {"type": "transcript.text.done",\ndata: "text": "Ünï", "segments": [{"start": 0, "end": 1.5, "text": "Ünï"}]}\n\n';

describe("events", () => {
  it("reads the same events however the text is cut", () => {
    for (let size = 1; size < STREAM.length; size += 7) {
      const deltas: TextDelta[] = [];
      const stream = new TranscriptStream((delta) => deltas.push(delta));
      for (let end = size; ; end += size) {
        stream.read(STREAM.slice(0, end));
        if (end >= STREAM.length) break;
      }
      expect(deltas.map(({ delta, end }) => [delta, end])).toEqual([["Ünï", 1.5]]);
      expect(stream.result?.segments).toHaveLength(1);
    }
  });

  it("does not return an event before its end", () => {
    const parser = new EventParser();
    expect(parser.feed("data: a\n")).toEqual([]);
    expect(parser.feed("\n")).toEqual([{ event: "message", data: "a" }]);
  });

  it("keeps the error that ends a stream", () => {
    const stream = new TranscriptStream(() => undefined);
    stream.read('event: error\ndata: {"error": {"message": "The model crashed.", "code": "model_crashed"}}\n\n');
    expect(stream.result).toBeNull();
    expect(stream.error?.message).toBe("The model crashed.");
  });
});

describe("errors that pass", () => {
  const busy = JSON.stringify({ error: { message: "The server is shutting down.", code: "shutting_down" } });
  const upstream = JSON.stringify({ error: { message: "llama-server answers 502.", code: "upstream_failed" } });
  it.each([
    [0, "", true],
    [429, "", true],
    [503, "<html>Service Unavailable</html>", true],
    [502, "<html>Bad Gateway</html>", true],
    [504, "", true],
    [524, "error code: 524", true],
    [502, upstream, false],
    [504, upstream, false],
    [200, busy, true],
    [200, upstream, false],
    [500, "", false],
    [400, "", false],
  ])("of status %i with the body %s: %s", (status, body, expected) => {
    expect(isTemporary(parseError(status, body))).toBe(expected);
  });

  it("say when to ask again", () => {
    expect(parseError(429, busy, "30").retryAfter).toBe(30);
    expect(parseError(429, "", "Wed, 21 Oct 2026 07:28:00 GMT").retryAfter).toBe(0);
  });
});

describe("lines", () => {
  it("closes the connection of a response that is not read to its end", async () => {
    let isClosed = false;
    const body = new ReadableStream({
      pull: (controller) => controller.enqueue(new TextEncoder().encode("a line\n")),
      cancel: () => void (isClosed = true),
    });
    for await (const line of readLines(new Response(body))) {
      expect(line).toBe("a line");
      break;
    }
    expect(isClosed).toBe(true);
  });

  it("reads letters whose bytes arrive one by one", async () => {
    const body = new ReadableStream({
      start(controller) {
        for (const byte of new TextEncoder().encode("one ü\n\ntwo 二")) controller.enqueue(Uint8Array.of(byte));
        controller.close();
      },
    });
    const lines: string[] = [];
    for await (const line of readLines(new Response(body))) lines.push(line);
    expect(lines).toEqual(["one ü", "two 二"]);
  });
});

describe("errors", () => {
  it("reads OpenAI's and Ollama's shapes, text, and not a proxy's page", () => {
    expect(parseError(400, '{"error": {"message": "No.", "code": "x"}}')).toMatchObject({ message: "No.", code: "x", status: 400 });
    expect(parseError(404, '{"error": "not found"}').message).toBe("not found");
    expect(parseError(502, "<html>Bad gateway</html>").message).toBe("HTTP 502");
    expect(parseError(500, "boom").message).toBe("boom");
  });
});

describe("keys", () => {
  it("puts any key into a subprotocol, which is a token of HTTP", () => {
    apiKey.value = "a/b=(ü)";
    expect(buildSubprotocols("eardrum")).toEqual(["eardrum", "openai-insecure-api-key.a%2Fb%3D%28%C3%BC%29"]);
    apiKey.value = "";
    expect(buildSubprotocols("eardrum")).toEqual(["eardrum"]);
  });
});

describe("router", () => {
  it("parses what it writes", () => {
    expect(parseHash(link("read", "a/b ü"))).toEqual({ view: "read", args: ["a/b ü"] });
    expect(parseHash("")).toEqual({ view: "transcribe", args: [] });
    expect(parseHash("#/read/%zz").args).toEqual(["%zz"]);
  });
});
