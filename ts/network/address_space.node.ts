import { readFileSync } from "node:fs";
import { read_variable } from "./proxy_settings.node.ts";

const FLAG = "--disable-wasm-trap-handler";
/**
 * Address space that Node reserves for a WebAssembly memory to avoid bounds checks: 10 GiB, plus a reserve for Node.
 */
const RESERVED_BYTES = 10.25 * 2 ** 30;

/**
 * A sentence if the process can't have the address space of one more WebAssembly memory, because of `ulimit -v` or a
 * batch system's limit on virtual memory; undefined if it can, or if that isn't known.
 */
export function address_space_hint(): string | undefined {
  if (process.execArgv.includes(FLAG) || read_variable("NODE_OPTIONS")?.includes(FLAG)) return undefined;
  try {
    const limit = Number(/^Max address space\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1]);
    // "unlimited" is NaN.
    if (!(limit > 0)) return undefined;
    const used = Number(/^VmSize:\s+(\d+) kB/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]) * 1024;
    if (used + RESERVED_BYTES <= limit) return undefined;
    return (
      `this process may use ${(limit / 2 ** 30).toFixed(1)} GiB of address space (ulimit -v, or a batch system's limit on virtual ` +
      `memory), and Node reserves 10 GiB of it for each WebAssembly memory. Set NODE_OPTIONS=${FLAG}, with which Node reserves ` +
      "none, or raise the limit."
    );
  } catch {
    return undefined; // no such files, as outside Linux
  }
}
