import { randomUUID } from "node:crypto";
import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { is_code } from "./errors.ts";

/** A process as other processes can identify it. */
export interface Owner {
  pid: number;
  /** The machine's name, for messages. */
  host: string;
  /** Identifies the pid namespace: equal places give pids the same meaning. null if unknown. */
  place: string | null;
  /** Its start time as the system reports it, which tells processes with a reused pid apart. */
  started: string | null;
}

let known: Owner | undefined;

/** This process. */
export function this_process(): Owner {
  known ??= {
    pid: process.pid,
    host: host_name(),
    place: read_place(),
    started: read_start(process.pid),
  };
  return known;
}

/**
 * On Linux the boot id with the pid and time namespaces, which differ between containers and between machines of the same
 * name. Elsewhere the machine's name.
 */
function read_place(): string | null {
  if (process.platform !== "linux") return unless_refused(hostname) ?? null;
  return (
    unless_refused(() => {
      const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
      return [boot, ...["pid", "time"].map((name) => namespace(name))].join(" ");
    }) ?? null
  );
}

function namespace(name: string): string {
  try {
    return readlinkSync(`/proc/self/ns/${name}`);
  } catch (error) {
    // Linux before 5.6 has no time namespace.
    if (is_code(error, "ENOENT")) return "";
    throw error;
  }
}

/** The 22nd field of the process's stat; the second, its name, may contain spaces and parentheses. */
function read_start(pid: number): string | null {
  const stat = unless_refused(() => readFileSync(`/proc/${pid}/stat`, "latin1"));
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? null;
}

/** Whether a process is running; "unknown" if it can't be determined from here. */
export function state_of({ pid, place, started }: Owner): "alive" | "gone" | "unknown" {
  if (place === null || place !== this_process().place) return "unknown";
  if (!is_alive(pid)) return "gone";
  const now = read_start(pid);
  if (now === null || started === null) return "unknown";
  return now === started ? "alive" : "gone";
}

/** Whether a process with this pid runs on this machine. */
export function is_alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return !is_code(error, "ESRCH");
  }
}

let known_host: string | undefined;

/** This machine's name; a random one if the runtime withholds it (Deno without --allow-sys). */
export function host_name(): string {
  known_host ??= unless_refused(hostname) ?? randomUUID();
  return known_host;
}

/** The value read; undefined if the system or the runtime refuses. */
function unless_refused<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}
