import { readFile } from "node:fs/promises";
import { VitMsnError } from "../../index.ts";
import { file_error } from "./errors.ts";
import { write_durably } from "./files.ts";
import type { RowShape } from "./rows.ts";

/** What of a command decides its output. Values are compared by their JSON. */
export type Identity = Readonly<Record<string, unknown>>;

/** How far a run has come: all that another one needs to go on after it. */
export interface Progress {
  /** "finishing": every row is there, but the file isn't. */
  state: "running" | "finishing" | "complete";
  /** Pictures passed, of all shards. */
  position: number;
  /** SHA-256 over the names of these, each ended by a line feed, in hexadecimal. */
  names_sha256: string;
  rows: number;
  failures: number;
  /** Bytes of the rows and of the failures that count; what follows was written by a run that was ended. */
  row_bytes: number;
  failure_bytes: number;
}

export interface Journal extends Progress {
  version: 1;
  identity: Identity;
  shape: RowShape;
  /** What the model answers to one fixed picture. */
  probe: readonly number[];
}

export async function read_journal(path: string): Promise<Journal | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw file_error(error, path);
  }
  const journal = parse(text);
  if (journal === undefined)
    throw new VitMsnError("IO", `${path} isn't the journal of a run; begin anew with --restart.`);
  return journal;
}

function parse(text: string): Journal | undefined {
  try {
    const journal = JSON.parse(text) as Journal;
    const counts = ["position", "rows", "failures", "row_bytes", "failure_bytes"] as const;
    const is_sound =
      journal.version === 1 &&
      ["running", "finishing", "complete"].includes(journal.state) &&
      counts.every((key) => Number.isSafeInteger(journal[key]) && journal[key] >= 0) &&
      typeof journal.names_sha256 === "string" &&
      typeof journal.identity === "object" &&
      Number.isSafeInteger(journal.shape?.width) &&
      Array.isArray(journal.probe);
    return is_sound ? journal : undefined;
  } catch {
    return undefined;
  }
}

export async function write_journal(path: string, journal: Journal): Promise<void> {
  await write_durably(path, `${JSON.stringify(journal, null, 2)}\n`);
}

/** @throws VitMsnError INVALID_ARGUMENT that names what is different from the run that began the output. */
export function check_identity(output: string, then: Identity, now: Identity): void {
  const changed = [...new Set([...Object.keys(then), ...Object.keys(now)])].filter(
    (key) => JSON.stringify(then[key]) !== JSON.stringify(now[key]),
  );
  if (changed.length === 0) return;
  const differences = changed.map((key) => `${key} was ${show(then[key])} and is ${show(now[key])}`);
  throw refusal(output, differences.join("; "));
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "unset";
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

export function refusal(output: string, why: string): VitMsnError {
  return new VitMsnError(
    "INVALID_ARGUMENT",
    `${output} was begun by another run: ${why}. Give another --output, or begin anew with --restart.`,
  );
}

/** How far two answers of the same model may be apart, relative to their size: engines round in different ways. */
const PROBE_TOLERANCE = 1e-2;

/** @throws VitMsnError INVALID_ARGUMENT where the model isn't the one that the output was begun with. */
export function check_probe(output: string, then: readonly number[], now: readonly number[]): void {
  const norm = Math.hypot(...then) || 1;
  const distance = Math.hypot(...then.map((value, i) => value - (now[i] ?? Number.NaN)));
  if (then.length === now.length && distance <= PROBE_TOLERANCE * norm) return;
  throw refusal(output, "the model's weights are others, though its name is the same");
}
