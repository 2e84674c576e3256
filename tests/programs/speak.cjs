// The official client for Node.js asks a server for speech: whole, piece by piece, and as events.
// node speak.cjs ADDRESS FOLDER TEXT writes whole.mp3, streamed.pcm and events.pcm, and prints the number of pieces and events.

const { writeFile } = require("node:fs/promises");
const OpenAI = require("openai");

async function main([address, folder, input]) {
  const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
  const wanted = { model: "gpt-4o-mini-tts", voice: "alloy", input };

  const whole = await client.audio.speech.create(wanted);
  await writeFile(`${folder}/whole.mp3`, Buffer.from(await whole.arrayBuffer()));

  const streamed = await client.audio.speech.create({ ...wanted, voice: { id: "heart" }, response_format: "pcm" });
  const pieces = [];
  for await (const piece of streamed.body) pieces.push(Buffer.from(piece));
  await writeFile(`${folder}/streamed.pcm`, Buffer.concat(pieces));

  const answer = await client.audio.speech.create({ ...wanted, response_format: "pcm", stream_format: "sse" });
  const events = (await answer.text())
    .split("\n")
    .filter((line) => line.startsWith("data: "))
    .map((line) => JSON.parse(line.slice("data: ".length)));
  const deltas = events.filter((event) => event.type === "speech.audio.delta");
  await writeFile(`${folder}/events.pcm`, Buffer.concat(deltas.map((event) => Buffer.from(event.audio, "base64"))));

  const refusal = await client.audio.speech.create({ ...wanted, voice: "nobody" }).catch((error) => error);
  console.log(
    JSON.stringify({
      type: whole.headers.get("content-type"),
      pieces: pieces.length,
      deltas: deltas.length,
      last: events.at(-1),
      refusal: { name: refusal.constructor.name, status: refusal.status, param: refusal.param, code: refusal.code },
    }),
  );
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
