// Calls of the package openai.
import { createReadStream, readFileSync } from "node:fs";

import { installed, serve } from "./calls.mjs";

const { default: OpenAI, toFile } = await import("openai");

async function call(url, path, { style = "create", kind = "stream", ...options }) {
  const client = new OpenAI({ baseURL: url, apiKey: "any", maxRetries: 0 });
  const file =
    kind === "stream" ? createReadStream(path) : await toFile(readFileSync(path), "audio.ogg");
  const request = { file, model: "whisper-1", ...options };
  if (style === "models") {
    const { data } = await client.models.list();
    return Promise.all(data.map(({ id }) => client.models.retrieve(id)));
  }
  if (style === "translation") return client.audio.translations.create(request);
  if (style === "response") {
    const { data, response } = await client.audio.transcriptions.create(request).withResponse();
    return { status: response.status, id: response.headers.get("x-request-id"), ...data };
  }
  const answer = await client.audio.transcriptions.create(request);
  if (!options.stream) return answer;
  const events = [];
  for await (const event of answer) events.push(event);
  return events;
}

const declared = installed("openai/resources/audio/transcriptions.d.ts");
const [, fields] = /interface TranscriptionCreateParamsBase<.*?\{\n(.*?)\n\}/s.exec(declared);
const parameters = [...fields.matchAll(/^    (\w+)\??:/gm)].map(([, name]) => name);
await serve("openai", call, parameters);
