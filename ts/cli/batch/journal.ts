import { is_code, readFile } from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";
import { file_error } from "./errors.ts";
import type { RowShape } from "./rows.ts";

/** What of a command decides its output. Values are compared by their JSON. */
export type Identity = Readonly<Record<string, unknown>>;

/** A point between two pictures. */
export interface Reached {
  /** Pictures passed, of all shards. */
  position: number;
  /** SHA-256 over the names of these, each ended by a line feed, in hexadecimal. */
  names_sha256: string;
}

/** How far a run has come: all that another one needs to go on after it. */
export interface Progress extends Reached {
  /** "finishing": every row is there, but the file isn't. */
  state: "running" | "finishing" | "complete";
  rows: number;
  failures: number;
  /** Bytes of the rows and of the failures that count, and their SHA-256; what follows was written by a run that was ended. */
  row_bytes: number;
  rows_sha256: string;
  failure_bytes: number;
  failures_sha256: string;
}

/** A run that tries again what failed in an earlier one, which came to its end. */
export interface Retry extends Reached {
  /** Rows and failures that the earlier one had. */
  rows: number;
  failures: number;
  /** How many of them are done with. */
  rows_done: number;
  failures_done: number;
}

export interface Journal extends Progress {
  version: 2;
  identity: Identity;
  shape: RowShape;
  /** What the model answers to one fixed picture. */
  probe: readonly number[];
  retry?: Retry | undefined;
}

/** A journal and the text that it was read from or written as; undefined where there is none. */
export async function read_journal(path: string): Promise<{ journal: Journal; text: string } | undefined> {
  const text = await read_journal_text(path);
  if (text === undefined) return undefined;
  const journal = parse(text);
  if (journal === undefined)
    throw new VitMsnError("IO", `${path} isn't the journal of a run; start again with --restart.`);
  return { journal, text };
}

export async function read_journal_text(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (is_code(error, "ENOENT")) return undefined;
    throw file_error(error, path);
  }
}

const STATES = ["running", "finishing", "complete"];

function parse(text: string): Journal | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!is_object(value) || value.version !== 2) return undefined;
  const { identity, shape, probe, retry, state } = value;
  const is_sound =
    typeof state === "string" &&
    STATES.includes(state) &&
    have(value, is_count, ["position", "rows", "failures", "row_bytes", "failure_bytes"]) &&
    have(value, is_sha256, ["names_sha256", "rows_sha256", "failures_sha256"]) &&
    is_object(identity) &&
    is_object(shape) &&
    is_count(shape.width) &&
    typeof shape.has_labels === "boolean" &&
    Array.isArray(probe) &&
    probe.every(Number.isFinite) &&
    (retry === undefined || is_retry(retry));
  return is_sound ? (value as unknown as Journal) : undefined;
}

function is_retry(value: unknown): boolean {
  return (
    is_object(value) &&
    have(value, is_count, ["position", "rows", "failures", "rows_done", "failures_done"]) &&
    have(value, is_sha256, ["names_sha256"]) &&
    (value.rows_done as number) <= (value.rows as number) &&
    (value.failures_done as number) <= (value.failures as number)
  );
}

function have(
  value: Record<string, unknown>,
  is_sound: (member: unknown) => boolean,
  names: readonly string[],
): boolean {
  return names.every((name) => is_sound(value[name]));
}

function is_object(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function is_count(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function is_sha256(value: unknown): boolean {
  return typeof value === "string" && /^[\da-f]{64}$/.test(value);
}

export function journal_text(journal: Journal): string {
  return `${JSON.stringify(journal, null, 2)}\n`;
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
    `${output} was begun by another run: ${why}. Give another --output, or start again with --restart.`,
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
