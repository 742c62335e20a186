// Runs calls of a client: reads them as JSON from standard input, writes what each returned.
import { File } from "node:buffer";
import { readFileSync } from "node:fs";

globalThis.File ??= File; // Node 18

/** The content of a file of an installed package. */
export const installed = (path) =>
  readFileSync(new URL(`../node_modules/${path}`, import.meta.url), "utf8");

export async function serve(name, call, parameters) {
  const calls = JSON.parse(readFileSync(0, "utf8"));
  const outcomes = [];
  for (const { url, path, ...options } of calls) {
    try {
      outcomes.push({ result: await call(url, path, options) });
    } catch (error) {
      outcomes.push({ error: `${error.constructor.name}: ${error.message}` });
    }
  }
  const { version } = JSON.parse(installed(`${name}/package.json`));
  process.stdout.write(JSON.stringify({ version, parameters, outcomes }));
}
