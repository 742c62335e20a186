const POLL_MS = 1500;

/** Poll the server until its model is loaded; `onChange` gets "ready", "warming", "lost" or "away". */
export async function untilReady(onChange, signal) {
  let last;
  while (!signal?.aborted) {
    const state = await poll();
    if (state !== last) onChange(state);
    last = state;
    if (state === "ready") return;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function poll() {
  try {
    const response = await fetch("ping", { cache: "no-store" });
    return { 200: "ready", 204: "warming" }[response.status] ?? "lost";
  } catch {
    return "away";
  }
}

/** The name of the served model; undefined if it cannot be requested. */
export async function servedModel() {
  try {
    const response = await fetch("health", { cache: "no-store" });
    return (await response.json()).model;
  } catch {
    return undefined;
  }
}
