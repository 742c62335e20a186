import { Failure, failureOf } from "./failures.js";

/**
 * Send a recording and yield the server's events: {name, document}, where name is "segment",
 * "progress" or, once and last, "result". Throws a Failure, or an AbortError when aborted.
 */
export async function* transcribe(recording, options, { key, signal, onUpload }) {
  const form = new FormData();
  form.set("file", recording, recording.name);
  const fields = { format: "verbose_json", stream: "true", ...options };
  for (const [name, value] of Object.entries(fields)) if (value) form.set(name, value);
  const texts = streamed("transcribe", { body: form, key, signal, onUpload });
  for await (const event of events(texts)) {
    if (event.name === "error") throw new Failure(event.document);
    yield event;
    if (event.name === "result") return;
  }
  throw new Failure({ error: "the answer ended without a result", code: "stream_ended" });
}

/** POST and return the response; throws a Failure unless it is successful. */
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
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** Parse server-sent events: {name, document}. */
async function* events(texts) {
  let rest = "";
  for await (const text of texts) {
    const blocks = (rest + text.replaceAll("\r", "")).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = read(block);
      if (event) yield event;
    }
  }
}

/**
 * POST and yield the response as it arrives. XMLHttpRequest, because fetch has no upload progress:
 * `onUpload(fraction)` is called while the body is sent.
 */
async function* streamed(address, { body, key, signal, onUpload }) {
  const request = new XMLHttpRequest();
  let wake;
  const changed = () => wake?.();
  request.open("POST", address);
  if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
  request.upload.onprogress = ({ loaded, total }) => onUpload(loaded / total);
  request.onreadystatechange = request.onprogress = request.onloadend = changed;
  signal.addEventListener("abort", () => request.abort());
  request.send(body);
  for (let length = 0; ; ) {
    await new Promise((resolve) => {
      wake = resolve;
      if (request.readyState === XMLHttpRequest.DONE) resolve();
    });
    if (signal.aborted) throw new DOMException("aborted", "AbortError");
    const done = request.readyState === XMLHttpRequest.DONE;
    if (done && request.status !== 200) throw await failed(request, length > 0);
    if (request.status !== 200 || request.readyState < XMLHttpRequest.LOADING) continue;
    const text = request.responseText;
    if (text.length > length) yield text.slice(length);
    length = text.length;
    if (done) return;
  }
}

function failed(request, started) {
  if (started) return new Failure({ error: "the connection was lost", code: "stream_ended" });
  if (!request.status) return new Failure({ error: "no response", code: "connection_lost" });
  const { status, statusText } = request;
  const retryAfter = request.getResponseHeader("Retry-After");
  const headers = retryAfter ? { "Retry-After": retryAfter } : {};
  return failureOf(new Response(request.responseText, { status, statusText, headers }));
}

/** Parse one event; undefined for comments, which keep the connection open. */
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
