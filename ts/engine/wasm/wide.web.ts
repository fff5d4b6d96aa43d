import type { Level } from "../engine_info.ts";
import type { WideChoice } from "./wide_types.ts";

/** Only Node has the compiler that joins vectors: Chromium's build of V8 is without it. */
export async function find_wide(_level: Level, _ordinary: WebAssembly.Module): Promise<WideChoice> {
  return {};
}
