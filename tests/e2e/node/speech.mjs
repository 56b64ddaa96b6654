// OpenAI's own JavaScript client, unchanged, speaking through a running sidecar. Argument: base URL. The key is in
// OPENAI_API_KEY. Prints one JSON object.
import OpenAI, { APIError } from "openai";

const [baseURL] = process.argv.slice(2);
const client = new OpenAI({ baseURL, maxRetries: 0 });
const text = "The quick brown fox jumps over the lazy dog. And the dog does not mind it.";
const ask = (options) => client.audio.speech.create({ model: "tts-1", voice: "alloy", input: text, ...options });

const found = { formats: {}, events: [], errors: {} };
for (const format of ["mp3", "opus", "aac", "flac", "wav", "pcm"]) {
  const answer = await ask({ response_format: format });
  const audio = Buffer.from(await answer.arrayBuffer());
  found.formats[format] = { type: answer.headers.get("content-type"), audio: audio.toString("base64") };
}

// The body is a stream of blocks, the first of which is there before the last is made.
const long = await ask({ input: `${text} `.repeat(60), response_format: "pcm" });
const [began, times] = [performance.now(), []];
for await (const block of long.body) {
  if (block.length) times.push(performance.now() - began);
}
found.blocks = { count: times.length, first_ms: times[0], last_ms: times.at(-1) };

const events = await ask({ response_format: "pcm", stream_format: "sse" });
for (const event of (await events.text()).split("\n\n").filter(Boolean)) {
  found.events.push(JSON.parse(event.slice("data: ".length)).type);
}

async function refused(name, promise) {
  try {
    await promise;
  } catch (error) {
    found.errors[name] = { type: error.constructor.name, api: error instanceof APIError, code: error.code, param: error.param };
  }
}
await refused("voice", ask({ voice: "nobody" }));
await refused("model", ask({ model: "tts-9" }));
await refused("speed", ask({ speed: 9 }));
await refused("format", ask({ response_format: "MP3" }));
await refused("blank", ask({ input: " " }));
console.log(JSON.stringify(found));
