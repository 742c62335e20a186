import { sent } from "./transcription.js";

const TYPES = {
  txt: "text/plain",
  srt: "application/x-subrip",
  vtt: "text/vtt",
  json: "application/json",
};

/** The answer as a file; the server cuts subtitles, from the words that are already here. */
export async function fileOf(answer, format, name, key) {
  const content = await contentOf(answer, format, key);
  const stem = name.replace(/\.[^.]{1,5}$/, "") || "transcript";
  return new File([content], `${stem}.${format}`, { type: `${TYPES[format]};charset=utf-8` });
}

async function contentOf(answer, format, key) {
  if (format === "txt") return `${answer.text}\n`;
  if (format === "json") return `${JSON.stringify(answer, null, 2)}\n`;
  const body = JSON.stringify({ format, words: answer.words });
  const response = await sent("render", { body, key, type: "application/json" });
  return response.text();
}

/** Hands a file to the browser's own downloads. */
export function save(file) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = file.name;
  link.click();
  // Not at once: some browsers begin to read it only after this turn.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
