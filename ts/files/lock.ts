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

/** How often who holds a lock shows others that it lives. */
const BEAT_MS = 5_000;
/** Who can't be asked, as it runs on another machine or in another container, is gone when it was silent for so long. */
const SILENCE_MS = 60_000;
/** A chain of dead owners has a member for each process that was killed within a few milliseconds of taking a lock. */
const MAX_CHAIN = 100;

/** The end of a file's name that holds a claim before it is one. */
const CLAIM = ".claim";

/** What is in a lock's file. */
interface Claim extends Owner {
  id: string;
  since: string;
}

/** The file that says who holds a lock, and the one that whoever follows it has to make. */
interface Tip {
  held?: { file: string; claim: Claim };
  next: string;
}

/** A lock that this process holds. */
export interface Lock {
  /** @throws VitMsnError IO where another process took it over, because this one was silent for too long. */
  check(): Promise<void>;
}

export interface LockOptions {
  /** What is held, for messages. */
  what: string;
  signal?: AbortSignal | undefined;
}

/** The locks that the code under way runs in. */
const scope = new AsyncLocalStorage<ReadonlyMap<string, Lock>>();

/**
 * Holds a lock while `action` runs: of all processes that see the file `path`, on whatever machine, one at a time. What runs inside
 * may ask for the same lock again.
 *
 * The lock is a file that says who holds it, made by a hard link, which only one of several makes. Who finds an owner that is gone
 * makes the file that is named after that owner's claim: the owner of the last file of such a chain holds the lock, and puts its claim in
 * the place of the first. A claim's id never comes again, so whoever comes too late makes a file that no chain leads to.
 *
 * @throws VitMsnError IO where another one holds it.
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

/** In the folder: whatever name leads to it, the lock is the same. */
const FOLDER_LOCK = ".vit-msn.lock";

/** Holds a folder, made if need be, while `action` runs. @throws VitMsnError IO where another process holds it. */
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
    // By its handle: a lock that was taken over must not live on by the beats of who had it.
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
    const by = held === undefined ? "its lock was removed" : `${describe(held.claim)} has taken it over`;
    throw new VitMsnError("IO", `${this.#what} isn't this process's any more: ${by}.`);
  }

  async release(): Promise<void> {
    clearInterval(this.#timer);
    await this.#file.close().catch(() => {});
    await remove_own(this.#path, this.#claim);
  }
}

/** Nothing is lost where it can't: the process will be gone. */
async function remove_own(file: string, { id }: Claim): Promise<void> {
  const claim = await read_claim(file).catch(() => undefined);
  if (claim?.id === id) await rm(file, { force: true }).catch(() => {});
}

async function beat(file: FileHandle): Promise<void> {
  const now = new Date();
  try {
    await file.utimes(now, now);
  } catch {
    // Who can't show that it lives finds out by check() what came of it.
  }
}

/** Becomes the last of the chain; gives its files from the first to this process's own. */
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
    if (!(await make_exclusively(next, own, claim))) continue;
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

/** The files of the chain where it ends with the claim; undefined where it doesn't. */
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
      throw new VitMsnError("IO", `${what} can't be locked: delete ${path} and the files named after it.`);
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
    `${file} says that another process is writing here, but not which; if there is none, delete it.`,
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

/** On the disk before it has its name: a power cut leaves no lock of nobody. */
async function write_claim(path: string, claim: Claim): Promise<void> {
  const file = await open(path, "wx");
  try {
    await write_all(file, Buffer.from(`${JSON.stringify(claim)}\n`), 0);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Makes a file unless it is there already; false where it is. */
async function make_exclusively(path: string, own: string, claim: Claim): Promise<boolean> {
  try {
    await link(own, path);
    return true;
  } catch (error) {
    // A network file system may have done it, and lost the answer.
    if (is_code(error, "EEXIST")) return (await read_claim(path))?.id === claim.id;
  }
  // A file system without hard links.
  try {
    await write_claim(path, claim);
    return true;
  } catch (error) {
    if (is_code(error, "EEXIST")) return false;
    throw error;
  }
}

/**
 * Whether the owner is gone. One that can't be asked is watched until it shows that it lives, or was silent for too long.
 * @throws VitMsnError IO where it lives.
 */
async function is_gone(
  { file, claim }: NonNullable<Tip["held"]>,
  what: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const state = state_of(claim);
  if (state === "gone") return true;
  if (state === "alive" && claim.pid === this_process().pid)
    throw new VitMsnError("IO", `${what} is being written by this process already; wait for that to end.`);
  const refusal = `${what} is being written by another process, ${describe(claim)}; wait for it, or end it.`;
  if (state === "alive") throw new VitMsnError("IO", refusal);
  const first = await last_beat(file);
  if (first === undefined) return false;
  env.warn(
    `${what} was begun by ${describe(claim)}; waiting up to ${SILENCE_MS / 1000} s to see whether it still runs. ` +
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

/** Opened each time, since network file systems keep what they know of a file that isn't. */
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
 * What processes left that were killed while they took the lock. A claim that can't be read was being written: who still is at it gets
 * along without, and will find this process.
 */
async function remove_leftovers(path: string, own: Claim): Promise<void> {
  const beginning = `${basename(path)}.`;
  for (const name of await readdir(dirname(path)).catch(() => [])) {
    const file = join(dirname(path), name);
    if (!name.startsWith(beginning) || file === successor(path, own)) continue;
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
