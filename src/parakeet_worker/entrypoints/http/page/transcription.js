import { Failure, refusal } from "./failures.js";

/**
 * Sends a recording and yields what the server says of it: {name, document}, where name is
 * "segment", "progress" or, once and last, "result". Throws a Failure; an AbortError when aborted.
 */
export async function* transcribe(recording, options, { key, signal }) {
  const form = new FormData();
  form.set("file", recording, recording.name);
  const fields = { format: "verbose_json", stream: "true", ...options };
  for (const [name, value] of Object.entries(fields)) if (value) form.set(name, value);
  const response = await sent("transcribe", { body: form, key, signal });
  for await (const event of events(response.body, signal)) {
    if (event.name === "error") throw new Failure(event.document);
    yield event;
    if (event.name === "result") return;
  }
  throw new Failure({ error: "the answer ended without a result", code: "stream_ended" });
}

/** POSTs and gives the answer if it is a success. */
export async function sent(address, { body, key, signal, type }) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (type) headers["Content-Type"] = type;
  let response;
  try {
    response = await fetch(address, { method: "POST", body, headers, signal });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new Failure({ error: failure.message, code: "connection_lost" });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Server-sent events of a stream of bytes: {name, document}. */
async function* events(bytes, signal) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let begun = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (begun + value.replaceAll("\r", "")).split("\n\n");
      begun = blocks.pop();
      for (const block of blocks) {
        const event = read(block);
        if (event) yield event;
      }
    }
  } catch (failure) {
    if (signal.aborted || failure instanceof Failure) throw failure;
    throw new Failure({ error: failure.message, code: "stream_ended" });
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One event; undefined for comments, which only keep the connection open. */
function read(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length ? { name, document: JSON.parse(data.join("\n")) } : undefined;
}
