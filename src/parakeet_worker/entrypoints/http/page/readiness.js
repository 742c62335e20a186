const ASK_AGAIN_MS = 1500;

/**
 * Asks the server until its model is loaded, and tells by `onChange` what it is doing:
 * "ready", "warming", "lost" or "away".
 */
export async function untilReady(onChange, signal) {
  let told;
  while (!signal?.aborted) {
    const state = await ask();
    if (state !== told) onChange(state);
    told = state;
    if (state === "ready") return;
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
  }
}

async function ask() {
  try {
    const response = await fetch("ping", { cache: "no-store" });
    return { 200: "ready", 204: "warming" }[response.status] ?? "lost";
  } catch {
    return "away";
  }
}
