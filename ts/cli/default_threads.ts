import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";

/** Each thread takes some tens of milliseconds to start and about 10 MB: more are only started on request. */
const MAX_DEFAULT_THREADS = 16;

export const THREADS_HELP = `threads of the CPU engine; default: one for each core, up to ${MAX_DEFAULT_THREADS}`;

/**
 * Threads of an engine if no option says otherwise: those cores that this process may use, shared by `engines`. Results
 * don't depend on their number.
 */
export function default_threads(engines = 1): number {
  // Node reserves address space for each thread, and ends the process where it gets none.
  if (is_address_space_limited()) return 1;
  return Math.max(1, Math.floor(Math.min(availableParallelism(), MAX_DEFAULT_THREADS) / engines));
}

/** By `ulimit -v` or a batch system's limit on virtual memory. */
function is_address_space_limited(): boolean {
  try {
    return /^Max address space\s+\d/m.test(readFileSync("/proc/self/limits", "utf8"));
  } catch {
    return false; // no such file, as outside Linux
  }
}
