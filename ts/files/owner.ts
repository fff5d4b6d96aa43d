import { randomUUID } from "node:crypto";
import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { is_code } from "./errors.ts";

/** A process as other ones can know it. */
export interface Owner {
  pid: number;
  /** For people. */
  host: string;
  /** What has to be the same for `pid` to mean the same process; null where that isn't known. */
  place: string | null;
  /** When it began, as the system tells it: another process of the same number began at another time. */
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
 * On Linux one run of one kernel, and the namespaces in which a process has its number and its time: two containers, or
 * two machines of one name, differ. Elsewhere there are no such things, and the machine's name has to do.
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
    // Linux before 5.6 has none for time.
    if (is_code(error, "ENOENT")) return "";
    throw error;
  }
}

/** The 22nd field of the process's stat; its name, the second, may have spaces and brackets in it. */
function read_start(pid: number): string | null {
  const stat = unless_refused(() => readFileSync(`/proc/${pid}/stat`, "latin1"));
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? null;
}

/** Whether a process still is there; "unknown" where that can't be told from here. */
export function state_of({ pid, place, started }: Owner): "alive" | "gone" | "unknown" {
  if (place === null || place !== this_process().place) return "unknown";
  if (!is_alive(pid)) return "gone";
  const now = read_start(pid);
  if (now === null || started === null) return "unknown";
  return now === started ? "alive" : "gone";
}

/** Whether a process of this number is on this machine. */
export function is_alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return !is_code(error, "ESRCH");
  }
}

let known_host: string | undefined;

/** This machine's name; one of its own where the runtime keeps it back (Deno without --allow-sys). */
export function host_name(): string {
  known_host ??= unless_refused(hostname) ?? randomUUID();
  return known_host;
}

/** undefined where the system or the runtime doesn't give it. */
function unless_refused<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}
