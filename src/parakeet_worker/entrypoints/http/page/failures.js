/** A failure: an error document of the server, or an error detected by the page. */
export class Failure extends Error {
  constructor({ error, code }, retrySeconds) {
    super(error);
    this.code = code;
    this.retrySeconds = retrySeconds;
  }

  /** The same failure with the title and advice of another code. */
  as(code) {
    return new Failure({ error: this.sentence, code }, this.retrySeconds);
  }

  /** The message without the code prefix. */
  get sentence() {
    const front = `${this.code}: `;
    return this.message.startsWith(front) ? this.message.slice(front.length) : this.message;
  }

  /** Whether a retry may succeed. */
  get passes() {
    return this.#meaning.passes ?? false;
  }

  get title() {
    return this.#meaning.title;
  }

  get advice() {
    const wait = this.retrySeconds ? ` Retry after ${this.retrySeconds} s.` : "";
    return this.#meaning.advice + wait;
  }

  get #meaning() {
    return MEANINGS[this.code] ?? UNKNOWN;
  }
}

/** The failure of an unsuccessful response, from its error document or its status. */
export async function failureOf(response) {
  const retrySeconds = Number(response.headers.get("Retry-After")) || undefined;
  const text = await response.text().catch(() => "");
  try {
    const document = JSON.parse(text);
    if (typeof document.error === "string" && document.code) return new Failure(document, retrySeconds);
  } catch {
    // Not JSON, for example a proxy's page: only the status is available.
  }
  const sentence = `${response.status} ${response.statusText}`.trim();
  return new Failure({ error: sentence, code: `http_${response.status}` }, retrySeconds);
}

const UNKNOWN = {
  title: "The recording was not transcribed",
  advice: "The server's response has an error code that this page does not support.",
  passes: true,
};

function later(title) {
  const advice = "Wait a moment and try again; nothing is wrong with the recording.";
  return { title, advice, passes: true };
}

/** By error code of the worker; the last ones belong to the page. */
export const MEANINGS = {
  invalid_request: {
    title: "The server did not accept the request",
    advice: "Check the options, or choose another recording.",
  },
  speaker_reference_unusable: {
    title: "A known speaker's voice cannot be used",
    advice: "Send 2 to 30 s in which that person speaks alone.",
  },
  audio_too_large: {
    title: "The file is too large",
    advice: "Send a shorter part of it, or a compressed form such as MP3 or Opus.",
  },
  audio_too_long: { title: "The recording is too long", advice: "Send it in parts." },
  audio_too_short: {
    title: "The recording is too short",
    advice: "It must be long enough to contain a word.",
  },
  audio_empty: { title: "The file is empty", advice: "Check that the recording was saved." },
  audio_missing: {
    title: "There is no sound in this file",
    advice: "It is a media file without an audio track; choose another one.",
  },
  audio_damaged: {
    title: "Part of the recording is damaged",
    advice: "Some of it cannot be decoded; copy or download it again.",
  },
  audio_truncated: {
    title: "The file is incomplete",
    advice: "It ends before its declared length; copy or download it again.",
  },
  audio_undecodable: {
    title: "This file is not audio",
    advice: "It cannot be decoded as audio; choose another one.",
  },
  clip_outside: { title: "The clip lies outside the recording", advice: "Choose another part." },
  wrong_api_key: {
    title: "The API key is wrong",
    advice: "Check it, or get another one from the operator.",
  },
  invalid_api_key: {
    title: "This server requires an API key",
    advice: "Its operator can issue one.",
  },
  host_forbidden: {
    title: "The server does not allow this host name",
    advice: "Open it as localhost, or add the name to PARAKEET_ALLOWED_HOSTS.",
  },
  origin_forbidden: {
    title: "This page may not use the server",
    advice: "Open the server's own page, or add this origin to PARAKEET_CORS_ORIGINS.",
  },
  model_not_found: { title: "That model is not served here", advice: "Omit the model." },
  unknown_route: { title: "The server lacks a part of this page", advice: "Reload the page." },
  method_not_allowed: { title: "The server lacks a part of this page", advice: "Reload the page." },
  upload_timeout: {
    title: "Sending the file took too long",
    advice: "Try again on a faster connection, or send a compressed form such as MP3 or Opus.",
    passes: true,
  },
  decode_timeout: later("Reading the file took too long"),
  decoder_killed: later("Reading the file was interrupted"),
  job_timeout: later("Transcribing took too long"),
  result_too_large: {
    title: "The transcript is too large to be sent",
    advice: "Send the recording in parts.",
  },
  overloaded: later("The server is busy"),
  scratch_full: later("The server is out of disk space"),
  scratch_unusable: later("The server cannot write to its disk"),
  busy: later("The server is busy"),
  warming: later("The model is still being loaded"),
  out_of_memory: {
    title: "The server ran out of memory",
    advice: "Try again, or contact the operator of the server.",
    passes: true,
  },
  contract_broken: later("The server had an internal error"),
  not_finite: {
    title: "The model failed on a part of this recording",
    advice: "Try again, or contact the operator of the server.",
  },
  internal_error: {
    title: "The server had an internal error",
    advice: "The details are in its log; contact the operator.",
    passes: true,
  },
  engine_lost: {
    title: "The server's engine has stopped",
    advice: "It has to be started again; then try again.",
    passes: true,
  },
  connection_lost: {
    title: "The server cannot be reached",
    advice: "Check that it runs and that you are online, then try again.",
    passes: true,
  },
  stream_ended: {
    title: "The transcript is incomplete",
    advice: "The connection ended early. The received part is below; try again for the whole transcript.",
    passes: true,
  },
  microphone_refused: {
    title: "The microphone may not be used",
    advice: "Allow it in the browser's settings for this page, then press Record again.",
  },
  microphone_missing: {
    title: "No microphone was found",
    advice: "Connect one, or choose a file instead.",
  },
  recording_unsupported: {
    title: "This browser cannot record here",
    advice: "Recording needs https, or the page opened as localhost. Choose a file instead.",
  },
  page_failed: {
    title: "This page had an internal error",
    advice: "Reload it; the details are in the browser's console.",
  },
};
