import { AsyncLocalStorage } from "node:async_hooks";
import { randomUUID } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { env } from "../env.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { sleep } from "../sleep.ts";
import { link, open, readdir, readFile, realpath, rename, rm } from "./disk.ts";
import { make_folder, write_all } from "./durable.ts";
import { io_error, is_code } from "./errors.ts";
import { type Owner, state_of, this_process } from "./owner.ts";

/** How often the owner of a lock updates its file, to show that it is alive. */
const BEAT_MS = 5_000;
/** An owner on another machine or in another container counts as gone after this time without an update. */
const SILENCE_MS = 60_000;
/** The longest chain of dead owners: one for each process that was killed within milliseconds of taking the lock. */
const MAX_CHAIN = 100;

/** The suffix of a claim's file before it becomes a lock. */
const CLAIM = ".claim";

/** The content of a lock file. */
interface Claim extends Owner {
  id: string;
  since: string;
}

/** The file of a lock's current owner, and the file that its successor has to create. */
interface Tip {
  held?: { file: string; claim: Claim };
  next: string;
}

/** A lock that this process holds. */
export interface Lock {
  /** @throws VitMsnError IO if another process has taken it over, because this one was silent for too long. */
  check(): Promise<void>;
}

export interface LockOptions {
  /** Names the locked file or folder in messages. */
  what: string;
  signal?: AbortSignal | undefined;
}

/** The locks held by the calling code. */
const scope = new AsyncLocalStorage<ReadonlyMap<string, Lock>>();

/**
 * Holds a lock while `action` runs. Among all processes that see the file `path`, on any machine, one holds it at a
 * time. `action` may take the same lock again.
 *
 * The lock is a file that names its owner, created by a hard link, which succeeds for one process only. A process that
 * finds the owner gone creates a file named after that owner's claim. The owner of the last file in such a chain holds
 * the lock, and replaces the first file by its own claim. Ids of claims are unique, so a process that comes too late
 * creates a file that no chain leads to.
 *
 * @throws VitMsnError IO if another process holds it.
 */
export async function with_lock<T>(
  path: string,
  options: LockOptions,
  action: (lock: Lock) => Promise<T>,
): Promise<T> {
  const { what } = options;
  const real = join(await guard(what, () => realpath(dirname(path))), basename(path));
  const outer = scope.getStore();
  const already = outer?.get(real);
  if (already !== undefined) return action(already);
  const lock = await guard(what, () => HeldLock.acquire(real, options));
  try {
    return await scope.run(new Map([...(outer ?? []), [real, lock]]), () => action(lock));
  } finally {
    await lock.release();
  }
}

/** Stored in the folder itself, so that all paths to the folder share one lock. */
const FOLDER_LOCK = ".vit-msn.lock";

/** Locks a folder, created if missing, while `action` runs. @throws VitMsnError IO if another process holds it. */
export async function with_locked_folder<T>(
  folder: string,
  signal: AbortSignal | undefined,
  action: () => Promise<T>,
): Promise<T> {
  await guard(folder, () => make_folder(folder));
  return with_lock(join(folder, FOLDER_LOCK), { what: folder, signal }, action);
}

class HeldLock implements Lock {
  readonly #path: string;
  readonly #what: string;
  readonly #claim: Claim;
  readonly #file: FileHandle;
  readonly #timer: NodeJS.Timeout;

  private constructor(path: string, what: string, claim: Claim, file: FileHandle) {
    this.#path = path;
    this.#what = what;
    this.#claim = claim;
    this.#file = file;
    // Through its handle, so that the previous owner doesn't keep a lock alive that was taken over.
    this.#timer = setInterval(() => beat(file), BEAT_MS);
    this.#timer.unref();
  }

  static async acquire(path: string, { what, signal }: LockOptions): Promise<HeldLock> {
    const claim: Claim = { ...this_process(), id: randomUUID(), since: new Date().toISOString() };
    const own = `${path}.${claim.id}${CLAIM}`;
    let chain: string[] = [];
    try {
      await write_claim(own, claim);
      chain = await take(path, own, claim, what, signal);
      if (chain.length > 1) await rename(own, path);
      for (const file of chain.slice(1)) await rm(file, { force: true });
      await remove_leftovers(path, claim);
      return new HeldLock(path, what, claim, await open(path, "r+"));
    } catch (error) {
      for (const file of chain) await remove_own(file, claim);
      throw error;
    } finally {
      await rm(own, { force: true }).catch(() => {});
    }
  }

  async check(): Promise<void> {
    const { held } = await guard(this.#what, () => find_tip(this.#path, this.#what));
    if (held?.claim.id === this.#claim.id) return;
    const by = held === undefined ? "its lock file was removed" : `${describe(held.claim)} has taken it over`;
    throw new VitMsnError("IO", `${this.#what} is no longer locked by this process: ${by}.`);
  }

  async release(): Promise<void> {
    clearInterval(this.#timer);
    await this.#file.close().catch(() => {});
    await remove_own(this.#path, this.#claim);
  }
}

/** Failing does no harm: others will find the process gone. */
async function remove_own(file: string, { id }: Claim): Promise<void> {
  const claim = await read_claim(file).catch(() => undefined);
  if (claim?.id === id) await rm(file, { force: true }).catch(() => {});
}

async function beat(file: FileHandle): Promise<void> {
  const now = new Date();
  try {
    await file.utimes(now, now);
  } catch {
    // check() reports it if another process took over meanwhile.
  }
}

/** Becomes the last owner of the chain. @returns the chain's files, from the first to this process's own. */
async function take(
  path: string,
  own: string,
  claim: Claim,
  what: string,
  signal: AbortSignal | undefined,
): Promise<string[]> {
  for (;;) {
    throw_if_aborted(signal, `Waiting for ${what}`);
    const { held, next } = await find_tip(path, what);
    if (held !== undefined && !(await is_gone(held, what, signal))) continue;
    if (!(await create_exclusively(next, own, claim))) continue;
    let chain: string[] | undefined;
    try {
      chain = await chain_to(path, claim.id, what);
    } finally {
      if (chain === undefined) await rm(next, { force: true });
    }
    if (chain !== undefined) return chain;
  }
}

async function find_tip(path: string, what: string): Promise<Tip> {
  const files = await read_chain(path, what);
  const held = files.at(-1);
  return held === undefined ? { next: path } : { held, next: successor(path, held.claim) };
}

/** The files of the chain if it ends with the claim, else undefined. */
async function chain_to(path: string, id: string, what: string): Promise<string[] | undefined> {
  const chain = await read_chain(path, what);
  return chain.at(-1)?.claim.id === id ? chain.map(({ file }) => file) : undefined;
}

async function read_chain(path: string, what: string): Promise<{ file: string; claim: Claim }[]> {
  const chain: { file: string; claim: Claim }[] = [];
  for (let file = path; ; ) {
    const claim = await read_claim(file);
    if (claim === undefined) return chain;
    if (chain.length >= MAX_CHAIN)
      throw new VitMsnError(
        "IO",
        `${what} can't be locked, since its lock has too many dead owners. Delete ${path} and the files named after it.`,
      );
    chain.push({ file, claim });
    file = successor(path, claim);
  }
}

function successor(path: string, { id }: Claim): string {
  return `${path}.${id}`;
}

async function read_claim(file: string): Promise<Claim | undefined> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if (is_code(error, "ENOENT")) return undefined;
    throw error;
  }
  const claim = parse_claim(text);
  if (claim !== undefined) return claim;
  throw new VitMsnError(
    "IO",
    `${file} is a lock file without a valid owner. If no other process is writing here, delete it.`,
  );
}

function parse_claim(text: string): Claim | undefined {
  try {
    const claim = JSON.parse(text) as Claim;
    const is_text = (value: unknown) => typeof value === "string";
    const is_sound =
      /^[\da-f-]{36}$/.test(claim.id) &&
      Number.isSafeInteger(claim.pid) &&
      claim.pid > 0 &&
      [claim.host, claim.since].every(is_text) &&
      [claim.place, claim.started].every((value) => value === null || is_text(value));
    return is_sound ? claim : undefined;
  } catch {
    return undefined;
  }
}

/** Synced before it becomes a lock, so that a power cut leaves no lock without an owner. */
async function write_claim(path: string, claim: Claim): Promise<void> {
  const file = await open(path, "wx");
  try {
    await write_all(file, Buffer.from(`${JSON.stringify(claim)}\n`), 0);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Creates a file. @returns false if it already exists. */
async function create_exclusively(path: string, own: string, claim: Claim): Promise<boolean> {
  try {
    await link(own, path);
    return true;
  } catch (error) {
    // A network file system may have created the link and lost the response.
    if (is_code(error, "EEXIST")) return (await read_claim(path))?.id === claim.id;
  }
  // The file system has no hard links.
  try {
    await write_claim(path, claim);
    return true;
  } catch (error) {
    if (is_code(error, "EEXIST")) return false;
    throw error;
  }
}

/**
 * Whether the owner is gone. If that can't be determined, waits until the owner updates its file or was silent for too
 * long.
 * @throws VitMsnError IO if it is alive.
 */
async function is_gone(
  { file, claim }: NonNullable<Tip["held"]>,
  what: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const state = state_of(claim);
  if (state === "gone") return true;
  if (state === "alive" && claim.pid === this_process().pid)
    throw new VitMsnError("IO", `${what} is already being written by this process. Wait until that ends.`);
  const refusal = `${what} is being written by another process, ${describe(claim)}. Wait for it, or end it.`;
  if (state === "alive") throw new VitMsnError("IO", refusal);
  const first = await last_beat(file);
  if (first === undefined) return false;
  env.warn(
    `${what} is locked by ${describe(claim)}; waiting up to ${SILENCE_MS / 1000} s to see whether that still runs. ` +
      `If you know that it doesn't, delete ${file}.`,
  );
  for (let waited = 0; waited < SILENCE_MS; waited += BEAT_MS) {
    await sleep(BEAT_MS, signal);
    throw_if_aborted(signal, `Waiting for ${what}`);
    const now = await last_beat(file);
    if (now === undefined) return false;
    if (now !== first) throw new VitMsnError("IO", `${refusal} If it is gone, delete ${file}.`);
  }
  return true;
}

/** Opens the file each time, since network file systems cache the times of files that aren't opened. */
async function last_beat(path: string): Promise<number | undefined> {
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch (error) {
    if (is_code(error, "ENOENT")) return undefined;
    throw error;
  }
  try {
    return (await file.stat()).mtimeMs;
  } finally {
    await file.close();
  }
}

/**
 * Removes files of processes that were killed while they took the lock. A claim that can't be parsed is still being
 * written: its process can do without the file, and will find this process.
 */
async function remove_leftovers(path: string, own: Claim): Promise<void> {
  const prefix = `${basename(path)}.`;
  for (const name of await readdir(dirname(path)).catch(() => [])) {
    const file = join(dirname(path), name);
    if (!name.startsWith(prefix) || file === successor(path, own)) continue;
    const claim = await read_claim(file).catch(() => "unreadable" as const);
    const is_left =
      claim === "unreadable"
        ? name.endsWith(CLAIM)
        : claim !== undefined && claim.id !== own.id && state_of(claim) === "gone";
    if (is_left) await rm(file, { force: true }).catch(() => {});
  }
}

function describe({ pid, host, since }: Claim): string {
  return `process ${pid} on ${host} (since ${since})`;
}

async function guard<T>(what: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw io_error(`${what} can't be written`, error);
  }
}
