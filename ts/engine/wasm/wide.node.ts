import { env } from "../../env.ts";
import type { Level } from "../engine_info.ts";
import { load_wasm_module } from "./load_wasm.ts";
import { check_wide } from "./wide_check.ts";
import type { WideChoice } from "./wide_types.ts";

/** Lets V8 join pairs of neighbouring vectors into vectors of 256 bits, in modules that are compiled from then on. */
const FLAG = "--experimental-wasm-revectorize";
/** The V8 of Node 24. */
const FIRST_V8 = 13;

const checked = new Map<Level, Promise<WideChoice>>();

/**
 * The wide engine's module in place of the ordinary one of this level: if V8 was started with its flag or env asks for
 * it, and if the engine gives the same bits faster here.
 */
export async function find_wide(level: Level, ordinary: WebAssembly.Module): Promise<WideChoice> {
  if (env.wide_vectors === false || !(env.wide_vectors || is_flag_set())) return {};
  const obstacle = obstacle_to_wide();
  if (obstacle !== undefined) return { not_wide: [obstacle] };
  if (!level.startsWith("relaxed")) return {}; // the reasons for that level are reasons for this, too
  const choice = checked.get(level) ?? check(level, ordinary);
  checked.set(level, choice);
  return choice;
}

async function check(level: Level, ordinary: WebAssembly.Module): Promise<WideChoice> {
  try {
    const { setFlagsFromString } = await import("node:v8");
    setFlagsFromString(FLAG);
    const module = await load_wasm_module(undefined, level.replace("relaxed", "relaxed-wide") as Level);
    const reason = await check_wide(ordinary, module);
    return reason === undefined ? { module } : { not_wide: [reason] };
  } catch (error) {
    return { not_wide: [`The engine for wide vectors can't be used: ${String(error)}`] };
  }
}

/** Whether the process was started with V8's flag; V8 takes underscores for hyphens. */
function is_flag_set(): boolean {
  return process.execArgv.some((argument) => argument.replaceAll("_", "-") === FLAG);
}

function obstacle_to_wide(): string | undefined {
  const is_node = !("Deno" in globalThis || "Bun" in globalThis);
  if (!is_node || Number.parseInt(process.versions.v8, 10) < FIRST_V8) {
    return "Wide vectors need Node 24 or newer.";
  }
  if (process.arch !== "x64") return "Wide vectors need an x64 processor with AVX2.";
  return undefined;
}
