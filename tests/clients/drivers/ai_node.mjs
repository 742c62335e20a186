// Calls of the AI SDK's transcribe with the provider @ai-sdk/openai.
import { readFileSync } from "node:fs";

import { installed, serve } from "./calls.mjs";

const { createOpenAI } = await import("@ai-sdk/openai");
const { experimental_transcribe: transcribe } = await import("ai");

async function call(url, path, { model = "whisper-1", ...options }) {
  const provider = createOpenAI({ baseURL: url, apiKey: "any" });
  const { text, segments, language, durationInSeconds } = await transcribe({
    model: provider.transcription(model),
    audio: readFileSync(path),
    providerOptions: Object.keys(options).length > 0 ? { openai: options } : undefined,
    maxRetries: 0,
  });
  return { text, segments, language, durationInSeconds };
}

const [, fields] = /openAITranscriptionModelOptions = .*?z\d*\.object\(\{(.*?)\}\)/s.exec(
  installed("@ai-sdk/openai/dist/index.mjs"),
);
const parameters = [...fields.matchAll(/^      (\w+): z/gm)].map(([, name]) => name);
await serve("@ai-sdk/openai", call, parameters);
