import { constants } from "node:fs";
import { posix } from "node:path";

// A disk in memory that fails, is full, tears writes or loses its power whenever a test wants it. It knows which bytes and
// names were brought to safety by sync(), and loses the others in every way that file systems may.

interface File {
  kind: "file";
  data: Uint8Array;
  /** What a loss of power leaves. */
  saved: Uint8Array;
  /** Written since the last sync(). */
  dirty: [start: number, end: number][];
  modified: number;
}

interface Folder {
  kind: "folder";
  entries: Map<string, Entry>;
  saved: Map<string, Entry>;
  /** What happened to names since the last sync(): a renamed one is two of a change. */
  changes: [name: string, entry: Entry | undefined][][];
}

interface Link {
  kind: "link";
  target: string;
}

type Entry = File | Folder | Link;

/** What remains of changes that no sync() has made durable. */
export const LOSSES = {
  /** A process was killed: nothing is lost. */
  nothing: { names: "new", data: "new" },
  everything: { names: "saved", data: "saved" },
  /** Files have their names and sizes, and holes in the place of bytes. */
  bytes: { names: "new", data: "holes" },
  some_bytes: { names: "new", data: "torn" },
  names: { names: "saved", data: "new" },
  /** The first change of names in each folder, but not those after it: file systems may write them in any order. */
  first_name: { names: "without_first", data: "saved" },
} as const;

export type Loss = keyof typeof LOSSES;

/** Thrown in a process that continues after it was killed; it isn't an error of the system. */
export class Killed extends Error {}

export interface Fault {
  /** The number of the call that fails; the first is 1. */
  at: number;
  /** "kill", or a system's error. */
  what: "kill" | "EIO" | "ENOSPC" | "EDQUOT";
  /** Also all later calls: a disk that stays full. */
  stays?: boolean;
}

const WRITING = new Set(["open", "write", "datasync", "sync", "link", "mkdir", "rename", "truncate"]);
const OPENING = { r: constants.O_RDONLY, "r+": constants.O_RDWR } as const;

function folder(): Folder {
  return { kind: "folder", entries: new Map(), saved: new Map(), changes: [] };
}

function file(): File {
  return { kind: "file", data: new Uint8Array(), saved: new Uint8Array(), dirty: [], modified: 0 };
}

function system_error(code: string, syscall: string, path: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: ${syscall} '${path}'`), { code, syscall, path });
}

function resized(bytes: Uint8Array, size: number): Uint8Array {
  const copy = new Uint8Array(size);
  copy.set(bytes.subarray(0, size));
  return copy;
}

export class FaultyDisk {
  calls = 0;
  fault: Fault | undefined;
  /** As on a USB stick. */
  has_links = true;
  /** Writes store at most half of their bytes. */
  writes_are_short = false;
  /** Called before every call, for tests that decide which of several processes continues. */
  turn: (() => Promise<void>) | undefined;
  #root = folder();
  #now = 0;

  /** A copy of the disk, for another fault. */
  copy(): FaultyDisk {
    const copied = new FaultyDisk();
    copied.#root = structuredClone(this.#root);
    copied.has_links = this.has_links;
    return copied;
  }

  /** Cuts the power, and switches it on again. */
  lose(loss: Loss): void {
    const { names, data } = LOSSES[loss];
    const seen = new Set<Entry>();
    const visit = (entry: Entry) => {
      if (entry.kind === "link" || seen.has(entry)) return;
      seen.add(entry);
      if (entry.kind === "file") {
        entry.data = this.#left(entry, data);
        entry.saved = entry.data.slice();
        entry.dirty = [];
        return;
      }
      if (names === "saved") entry.entries = new Map(entry.saved);
      if (names === "without_first") {
        entry.entries = new Map(entry.saved);
        for (const change of entry.changes.slice(1)) set_names(entry.entries, change);
      }
      entry.saved = new Map(entry.entries);
      entry.changes = [];
      for (const below of entry.entries.values()) visit(below);
    };
    visit(this.#root);
    this.fault = undefined;
    this.calls = 0;
  }

  #left({ data, saved, dirty }: File, what: "new" | "saved" | "holes" | "torn"): Uint8Array {
    if (what === "new") return data.slice();
    if (what === "saved") return saved.slice();
    const left = resized(saved, data.length);
    for (const [start, end] of what === "torn" ? dirty : [])
      left.set(data.subarray(start, start + ((end - start) >> 1)), start);
    return left;
  }

  /** All files, by path. */
  files(): Map<string, Uint8Array> {
    const found = new Map<string, Uint8Array>();
    const visit = (entry: Entry, path: string) => {
      if (entry.kind === "file") found.set(path, entry.data);
      if (entry.kind === "folder") for (const [name, below] of entry.entries) visit(below, `${path}/${name}`);
    };
    visit(this.#root, "");
    return found;
  }

  // The functions of ts/files/disk.ts.

  readonly open = (path: string, flags: string | number = "r") =>
    this.#call("open", path, () => {
      const bits = typeof flags === "number" ? flags : OPENING[flags as "r" | "r+"];
      const creates = bits === undefined || (bits & constants.O_CREAT) !== 0;
      if (path === "/") return new Handle(this, path, this.#root);
      const parent = this.#parent(path, "open");
      let entry = parent.entries.get(posix.basename(path));
      if (entry !== undefined && flags === "wx") throw system_error("EEXIST", "open", path);
      if (entry === undefined && !creates) throw system_error("ENOENT", "open", path);
      if (entry === undefined) {
        entry = file();
        change_names(parent, [posix.basename(path), entry]);
      }
      if (entry.kind === "file" && flags === "w") this.#truncate(entry, 0);
      return new Handle(this, path, entry as File | Folder);
    });

  readonly readFile = (path: string, _encoding: "utf8") =>
    this.#call("read", path, () => Buffer.from(this.#file(path, "open").data).toString("utf8"));

  readonly readdir = (path: string, options?: { withFileTypes: true }) =>
    this.#call("scandir", path, () => {
      const entries = [...this.#folder(path, "scandir").entries];
      if (options === undefined) return entries.map(([name]) => name);
      return entries.map(([name, entry]) => ({ name, ...describe(entry) }));
    });

  readonly stat = (path: string) => this.#call("stat", path, () => describe(this.#entry(path, "stat")));
  readonly lstat = this.stat;
  readonly realpath = (path: string) =>
    this.#call("realpath", path, () => {
      this.#entry(path, "realpath");
      return path;
    });

  readonly readlink = (path: string) =>
    this.#call("readlink", path, () => (this.#entry(path, "readlink") as Link).target);

  readonly mkdir = (path: string, options: { recursive?: boolean } = {}) =>
    this.#call("mkdir", path, () => {
      let first: string | undefined;
      let parent = this.#root;
      const names = path.split("/").slice(1);
      for (const [i, name] of names.entries()) {
        let below = parent.entries.get(name);
        const is_last = i === names.length - 1;
        if (below === undefined && !is_last && !options.recursive)
          throw system_error("ENOENT", "mkdir", path);
        if (below !== undefined && is_last && !options.recursive) throw system_error("EEXIST", "mkdir", path);
        if (below === undefined) {
          below = folder();
          change_names(parent, [name, below]);
          first ??= `/${names.slice(0, i + 1).join("/")}`;
        }
        if (below.kind !== "folder") throw system_error("ENOTDIR", "mkdir", path);
        parent = below;
      }
      return first;
    });

  readonly link = (from: string, to: string) =>
    this.#call("link", to, () => {
      if (!this.has_links) throw system_error("EPERM", "link", to);
      const parent = this.#parent(to, "link");
      if (parent.entries.has(posix.basename(to))) throw system_error("EEXIST", "link", to);
      change_names(parent, [posix.basename(to), this.#file(from, "link")]);
    });

  readonly rename = (from: string, to: string) =>
    this.#call("rename", from, () => {
      const entry = this.#entry(from, "rename");
      const parent = this.#parent(to, "rename");
      const there = parent.entries.get(posix.basename(to));
      if (there?.kind === "folder" && there.entries.size > 0) throw system_error("ENOTEMPTY", "rename", to);
      if (there === entry) return;
      const old_parent = this.#parent(from, "rename");
      const changes = [
        [posix.basename(to), entry],
        [posix.basename(from), undefined],
      ] as const;
      if (parent === old_parent) change_names(parent, ...changes);
      else {
        change_names(parent, changes[0]);
        change_names(old_parent, changes[1]);
      }
    });

  readonly rm = (path: string, options: { force?: boolean; recursive?: boolean } = {}) =>
    this.#call("unlink", path, () => {
      const parent = this.#parent(path, "unlink");
      const entry = parent.entries.get(posix.basename(path));
      if (entry === undefined && !options.force) throw system_error("ENOENT", "unlink", path);
      if (entry?.kind === "folder" && !options.recursive) throw system_error("EISDIR", "rm", path);
      if (entry !== undefined) change_names(parent, [posix.basename(path), undefined]);
    });

  // Operations on an open file.

  read(path: string, of: File, into: Uint8Array, at: number, length: number, position: number) {
    return this.#call("read", path, () => {
      const bytes = of.data.subarray(position, position + length);
      into.set(bytes, at);
      return { bytesRead: bytes.length };
    });
  }

  write(path: string, of: File, bytes: Uint8Array, position: number) {
    const put = (length: number) => {
      const end = position + length;
      if (end > of.data.length) of.data = resized(of.data, end);
      of.data.set(bytes.subarray(0, length), position);
      of.dirty.push([position, end]);
      of.modified = ++this.#now;
      return { bytesWritten: length };
    };
    const half = Math.ceil(bytes.length / 2);
    return this.#call(
      "write",
      path,
      () => put(this.writes_are_short ? half : bytes.length),
      () => put(half),
    );
  }

  truncate(path: string, of: File, size: number) {
    return this.#call("truncate", path, () => this.#truncate(of, size));
  }

  sync(path: string, of: File | Folder) {
    const forget = () => {
      // The system won't try again to write what it couldn't: a later sync() that succeeds doesn't mean that it is written.
      if (of.kind === "file") of.dirty = [];
    };
    return this.#call(
      "sync",
      path,
      () => {
        if (of.kind === "folder") {
          of.saved = new Map(of.entries);
          of.changes = [];
        } else {
          of.saved = resized(of.saved, of.data.length);
          for (const [start, end] of of.dirty) of.saved.set(of.data.subarray(start, end), start);
          of.dirty = [];
        }
      },
      forget,
    );
  }

  #truncate(of: File, size: number): void {
    of.data = resized(of.data, size);
    of.dirty = of.dirty.flatMap(([start, end]) => (start < size ? [[start, Math.min(end, size)]] : []));
  }

  /** One call: done, or met by the fault, which may do a part of it. */
  async #call<T>(syscall: string, path: string, work: () => T, part?: () => void): Promise<T> {
    await this.turn?.();
    this.calls++;
    const { fault } = this;
    if (fault === undefined || this.calls < fault.at) return work();
    const { what, at, stays } = fault;
    if (what === "kill") {
      if (this.calls === at) part?.();
      throw new Killed();
    }
    if (this.calls > at && !(stays && WRITING.has(syscall))) return work();
    part?.();
    throw system_error(what, syscall, path);
  }

  #entry(path: string, syscall: string): Entry {
    let entry: Entry = this.#root;
    for (const name of path.split("/").slice(1).filter(Boolean)) {
      if (entry.kind !== "folder") throw system_error("ENOTDIR", syscall, path);
      const below = entry.entries.get(name);
      if (below === undefined) throw system_error("ENOENT", syscall, path);
      entry = below;
    }
    return entry;
  }

  #folder(path: string, syscall: string): Folder {
    const entry = this.#entry(path, syscall);
    if (entry.kind !== "folder") throw system_error("ENOTDIR", syscall, path);
    return entry;
  }

  #parent(path: string, syscall: string): Folder {
    return this.#folder(posix.dirname(path), syscall);
  }

  #file(path: string, syscall: string): File {
    const entry = this.#entry(path, syscall);
    if (entry.kind !== "file") throw system_error("EISDIR", syscall, path);
    return entry;
  }
}

type NameChange = readonly [name: string, entry: Entry | undefined];

function change_names(of: Folder, ...change: NameChange[]): void {
  of.changes.push(change.map(([name, entry]) => [name, entry]));
  set_names(of.entries, change);
}

function set_names(entries: Map<string, Entry>, change: readonly NameChange[]): void {
  for (const [name, entry] of change) {
    if (entry === undefined) entries.delete(name);
    else entries.set(name, entry);
  }
}

function describe(entry: Entry) {
  const size = entry.kind === "file" ? entry.data.length : 0;
  const mtimeMs = entry.kind === "file" ? entry.modified : 0;
  const is = (kind: Entry["kind"]) => () => entry.kind === kind;
  return { size, mtimeMs, isFile: is("file"), isDirectory: is("folder"), isSymbolicLink: is("link") };
}

/** The part of Node's FileHandle that is used. */
class Handle {
  readonly #disk: FaultyDisk;
  readonly #path: string;
  readonly #entry: File | Folder;

  constructor(disk: FaultyDisk, path: string, entry: File | Folder) {
    this.#disk = disk;
    this.#path = path;
    this.#entry = entry;
  }

  get #file(): File {
    return this.#entry as File;
  }

  read = (into: Uint8Array, at: number, length: number, position: number) =>
    this.#disk.read(this.#path, this.#file, into, at, length, position);
  write = (bytes: Uint8Array, at: number, length: number, position: number) =>
    this.#disk.write(this.#path, this.#file, bytes.subarray(at, at + length), position);
  truncate = (size: number) => this.#disk.truncate(this.#path, this.#file, size);
  sync = () => this.#disk.sync(this.#path, this.#entry);
  datasync = this.sync;
  stat = async () => describe(this.#entry);
  utimes = async (now: Date) => {
    this.#file.modified = now.getTime();
  };
  close = async () => {};
}

let mounted = new FaultyDisk();

/** The disk that ts/files/disk.ts, replaced by `mount_point` in a test, reads and writes. */
export function mount(disk: FaultyDisk): void {
  mounted = disk;
}

const CALLS = [
  ...[
    "link",
    "lstat",
    "mkdir",
    "open",
    "readdir",
    "readFile",
    "readlink",
    "realpath",
    "rename",
    "rm",
    "stat",
  ],
] as const;

export const mount_point = Object.fromEntries(
  CALLS.map((name) => [
    name,
    (...args: unknown[]) => (mounted[name as "open"] as unknown as (...given: unknown[]) => unknown)(...args),
  ]),
);
