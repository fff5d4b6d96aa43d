import { read_entry, write_entry } from "#small_cache";
import { WEIGHT_DTYPES } from "../../dtypes.ts";
import { env } from "../../env.ts";
import type { LayerShape, TileChoice } from "../engine.ts";
import type { AdapterInfo } from "../engine_info.ts";

/** By origin (adapter and binary), then by shape. */
const chosen = new Map<string, Map<string, TileChoice>>();

/** The tiles chosen on one adapter for one binary's kernels, in memory and in the download cache. */
export class TileCache {
  /** By shape, shared by all engines on the adapter. */
  readonly choices: Map<string, TileChoice>;
  readonly #origin: string;
  readonly #cache_dir: string | undefined;

  /** @param binary names the engine's WebAssembly: the kernels of another one take different times. */
  constructor(adapter: AdapterInfo, binary: string, cache_dir: string | undefined) {
    this.#origin = JSON.stringify({ binary, adapter });
    this.#cache_dir = cache_dir;
    this.choices = chosen.get(this.#origin) ?? new Map();
    chosen.set(this.#origin, this.choices);
  }

  /** Adds the choices of other programs for shapes without a choice. */
  async read(): Promise<void> {
    const text = env.use_cache ? await read_entry(this.#name(), this.#cache_dir) : undefined;
    for (const choice of text === undefined ? [] : parse(text, this.#origin)) {
      const key = shape_key(choice);
      if (!this.choices.has(key)) this.choices.set(key, choice);
    }
  }

  /** Caches the choices for other programs. */
  async write(): Promise<void> {
    if (!env.use_cache) return;
    await this.read();
    const entry = { origin: this.#origin, choices: [...this.choices.values()] };
    try {
      await write_entry(this.#name(), JSON.stringify(entry), this.#cache_dir);
    } catch (error) {
      env.warn(`vit-msn: the choice of tiles can't be cached: ${String(error)}`);
    }
  }

  /** A short name suffices, since the entry states its origin. */
  #name(): string {
    let hash = 0x811c9dc5; // FNV-1a
    for (let i = 0; i < this.#origin.length; i++)
      hash = Math.imul(hash ^ this.#origin.charCodeAt(i), 0x01000193) >>> 0;
    return `tiles/${hash.toString(16)}.json`;
  }
}

/** A layer shape as a key. */
export function shape_key({ op, rows, inputs, outputs, dtype }: LayerShape): string {
  return [op, rows, inputs, outputs, dtype].join();
}

/** An entry's choices; none if it is damaged or of another origin. */
function parse(text: string, origin: string): TileChoice[] {
  try {
    const entry = JSON.parse(text) as { origin?: unknown; choices?: unknown } | null;
    if (entry?.origin !== origin || !Array.isArray(entry.choices)) return [];
    return entry.choices.every(is_choice) ? entry.choices : [];
  } catch {
    return [];
  }
}

function is_choice(value: TileChoice | null): value is TileChoice {
  if (typeof value?.ms !== "object" || value.ms === null) return false;
  const { op, rows, inputs, outputs, tile, default_tile, dtype, ms } = value;
  return (
    [rows, inputs, outputs].every((size) => Number.isInteger(size) && size > 0) &&
    [tile, default_tile].every((id) => typeof id === "string") &&
    ["linear", "attention"].includes(op) &&
    WEIGHT_DTYPES.includes(dtype) &&
    Object.values(ms).every((time) => time >= 0)
  );
}
