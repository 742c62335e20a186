// A use of the types that openapi-typescript generates from the server's OpenAPI document.
import type { components, operations } from "./api.js";

type Schemas = components["schemas"];
type Json<T> = T extends { content: { "application/json": infer Body } } ? Body : never;
type Response<Name extends keyof operations, Status extends keyof operations[Name]["responses"]> =
  Json<operations[Name]["responses"][Status]>;
type Request<Name extends keyof operations> = operations[Name] extends {
  requestBody: infer Body;
}
  ? Json<Body>
  : never;

const native: Request<"transcribe"> = {
  audio_url: "https://example.com/talk.ogg",
  format: "verbose_json",
  clip: { start: 1.5 },
  speakers: { min: 2 },
};

const form: Schemas["OpenAIForm"] = {
  file: "",
  response_format: "verbose_json",
  "timestamp_granularities[]": ["word"],
};

// @ts-expect-error: no such format
const wrong: Request<"transcribe"> = { ...native, format: "mp3" };

// @ts-expect-error: no such field
const unknown: Schemas["OpenAIForm"] = { ...form, temprature: 0 };

export function words(answer: Response<"createTranscription", 200>): string[] {
  if ("words" in answer && answer.words) return answer.words.map(({ word }) => word);
  return answer.text.split(" ");
}

export function lines(answer: Response<"transcribe", 200>): string[] {
  if (Array.isArray(answer) || "written_to" in answer) return [];
  if (!("segments" in answer)) return [answer.text];
  return answer.segments.map(({ start, text }) => `${start.toFixed(1)} ${text}`);
}

export function explanation(failure: Response<"createTranscription", 400>): string {
  const { message, param, code } = failure.error;
  return `${code}: ${param ?? ""} ${message}`;
}

export const retry = (failure: Response<"transcribe", 503>): boolean => failure.code !== "";
export const identifiers = (list: Response<"listModels", 200>): string[] =>
  list.data.map(({ id }) => id);
export const requests = [native, form, wrong, unknown];
