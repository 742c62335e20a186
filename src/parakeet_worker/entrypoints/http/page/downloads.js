import { sent } from "./transcription.js";

const TYPES = {
  txt: "text/plain",
  srt: "application/x-subrip",
  vtt: "text/vtt",
  json: "application/json",
};

/** The answer as a file; subtitles are rendered by the server from the answer's words. */
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

/** Download a file through the browser. */
export function save(file) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = file.name;
  link.click();
  // Delayed, because some browsers read the blob after this task.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Copy text to the clipboard, also on pages without https, where the clipboard API is missing. */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
