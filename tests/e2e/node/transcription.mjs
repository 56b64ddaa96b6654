// OpenAI's own JavaScript client, unchanged, against a running sidecar. Arguments: base URL, sound file. The key is in
// OPENAI_API_KEY. Prints one JSON object.
import { createReadStream } from "node:fs";
import OpenAI, { APIError } from "openai";

const [baseURL, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, maxRetries: 0 });
const ask = (options) =>
  client.audio.transcriptions.create({ model: "whisper-1", file: createReadStream(path), ...options });

const found = { formats: {}, events: [], errors: {} };
for (const format of ["json", "text", "srt", "vtt", "verbose_json"]) {
  found.formats[format] = await ask({ response_format: format });
}
for await (const event of await ask({ stream: true })) {
  found.events.push(event);
}
found.translation = await client.audio.translations.create({ model: "whisper-1", file: createReadStream(path) });

async function refused(name, promise) {
  try {
    await promise;
  } catch (error) {
    found.errors[name] = { type: error.constructor.name, api: error instanceof APIError, code: error.code, param: error.param };
  }
}
await refused("model", ask({ model: "whisper-9" }));
await refused("language", ask({ language: "klingon" }));
await refused("key", new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list());
console.log(JSON.stringify(found));
