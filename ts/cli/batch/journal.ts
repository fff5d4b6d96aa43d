import { type Digest, is_code, is_count, readFile } from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";
import { file_error } from "./errors.ts";
import type { RowShape } from "./rows.ts";

/** The parts of a command that determine its output. Values are compared as JSON. */
export type Identity = Readonly<Record<string, unknown>>;

/** A point in the sequence of images. */
export interface Reached {
  /** Images before it, of all shards. */
  position: number;
  /** SHA-256 over their names, each followed by a line feed, in hexadecimal. */
  names_sha256: string;
}

/** How far a run has come: everything that another run needs to resume it. */
export interface Progress extends Reached {
  /** "finishing": every row is stored, but the output file isn't written yet. */
  state: "running" | "finishing" | "complete";
  rows: number;
  failures: number;
  /** Lengths and SHA-256 of the valid rows and failures; bytes beyond them are from an interrupted run. */
  row_bytes: number;
  rows_sha256: string;
  failure_bytes: number;
  failures_sha256: string;
}

/** A run that retries what failed in an earlier, completed run. */
export interface Retry extends Reached {
  /** Rows and failures of the earlier run. */
  rows: number;
  failures: number;
  /** How many of them have been processed. */
  rows_done: number;
  failures_done: number;
}

export interface Journal extends Progress {
  version: 2;
  identity: Identity;
  shape: RowShape;
  /** The model's output for one fixed image. */
  probe: readonly number[];
  retry?: Retry | undefined;
  /** The output file as it was written, in formats that aren't rows one after the other. */
  written?: Digest | undefined;
}

/** A journal and its text as stored in the file; undefined if there is no journal. */
export async function read_journal(path: string): Promise<{ journal: Journal; text: string } | undefined> {
  const text = await read_journal_text(path);
  if (text === undefined) return undefined;
  const journal = parse(text);
  if (journal === undefined)
    throw new VitMsnError("IO", `${path} isn't a valid journal of a run. Start again with --restart.`);
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
  const { identity, shape, probe, retry, state, written } = value;
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
    (retry === undefined || is_retry(retry)) &&
    (written === undefined || is_digest(written));
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

function is_digest(value: unknown): boolean {
  return is_object(value) && is_count(value.bytes) && is_sha256(value.sha256);
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

function is_sha256(value: unknown): boolean {
  return typeof value === "string" && /^[\da-f]{64}$/.test(value);
}

export function journal_text(journal: Journal): string {
  return `${JSON.stringify(journal, null, 2)}\n`;
}

/** @throws VitMsnError INVALID_ARGUMENT that names the differences from the run that started the output. */
export function check_identity(output: string, before: Identity, now: Identity): void {
  const changed = [...new Set([...Object.keys(before), ...Object.keys(now)])].filter(
    (key) => JSON.stringify(before[key]) !== JSON.stringify(now[key]),
  );
  if (changed.length === 0) return;
  const differences = changed.map((key) => `${key} was ${show(before[key])} and is ${show(now[key])}`);
  throw refusal(output, differences.join("; "));
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "unset";
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

export function refusal(output: string, why: string): VitMsnError {
  return new VitMsnError(
    "INVALID_ARGUMENT",
    `${output} was started by a different run: ${why}. Choose another --output, or start again with --restart.`,
  );
}

/** The largest relative distance between two outputs of the same model: engines round differently. */
const PROBE_TOLERANCE = 1e-2;

/** @throws VitMsnError INVALID_ARGUMENT if the output was started with another model. */
export function check_probe(output: string, before: readonly number[], now: readonly number[]): void {
  const norm = Math.hypot(...before) || 1;
  const distance = Math.hypot(...before.map((value, i) => value - (now[i] ?? Number.NaN)));
  if (before.length === now.length && distance <= PROBE_TOLERANCE * norm) return;
  throw refusal(output, "the model has the same name but different weights");
}
