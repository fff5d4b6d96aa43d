import { keep, read_kept } from "#small_cache";
import { env } from "../../env.ts";
import type { LayerShape, TileChoice } from "../engine.ts";
import { WEIGHT_DTYPES } from "../engine.ts";
import type { AdapterInfo } from "../engine_info.ts";

/** By what a choice was measured with, then by shape. */
const chosen = new Map<string, Map<string, TileChoice>>();

/** The tiles that were chosen on one adapter for one binary's kernels: here, and where downloads are kept. */
export class KeptTiles {
  /** By shape. Every engine on the adapter has the same. */
  readonly choices: Map<string, TileChoice>;
  readonly #origin: string;
  readonly #cache_dir: string | undefined;

  /** @param binary names the engine's WebAssembly: another one's kernels take other times. */
  constructor(adapter: AdapterInfo, binary: string, cache_dir: string | undefined) {
    this.#origin = JSON.stringify({ binary, adapter });
    this.#cache_dir = cache_dir;
    this.choices = chosen.get(this.#origin) ?? new Map();
    chosen.set(this.#origin, this.choices);
  }

  /** Takes up what other programs chose, unless it was chosen here as well. */
  async read(): Promise<void> {
    const text = env.use_cache ? await read_kept(this.#name(), this.#cache_dir) : undefined;
    for (const choice of text === undefined ? [] : parse(text, this.#origin)) {
      const key = shape_key(choice);
      if (!this.choices.has(key)) this.choices.set(key, choice);
    }
  }

  /** Keeps the choices for other programs. */
  async write(): Promise<void> {
    if (!env.use_cache) return;
    await this.read();
    const kept = { origin: this.#origin, choices: [...this.choices.values()] };
    try {
      await keep(this.#name(), JSON.stringify(kept), this.#cache_dir);
    } catch (error) {
      env.warn(`vit-msn: the tiles that were chosen aren't kept: ${String(error)}`);
    }
  }

  /** A short name suffices: a file tells its origin. */
  #name(): string {
    let hash = 0x811c9dc5; // FNV-1a
    for (let i = 0; i < this.#origin.length; i++)
      hash = Math.imul(hash ^ this.#origin.charCodeAt(i), 0x01000193) >>> 0;
    return `tiles/${hash.toString(16)}.json`;
  }
}

/** What tells layers apart, as a key. */
export function shape_key({ rows, inputs, outputs, dtype }: LayerShape): string {
  return [rows, inputs, outputs, dtype].join();
}

/** A file's choices; none where it is damaged or of another origin. */
function parse(text: string, origin: string): TileChoice[] {
  try {
    const kept = JSON.parse(text) as { origin?: unknown; choices?: unknown } | null;
    if (kept?.origin !== origin || !Array.isArray(kept.choices)) return [];
    return kept.choices.every(is_choice) ? kept.choices : [];
  } catch {
    return [];
  }
}

function is_choice(value: TileChoice | null): value is TileChoice {
  if (typeof value?.ms !== "object" || value.ms === null) return false;
  const { rows, inputs, outputs, tile, default_tile, dtype, ms } = value;
  const sizes = [rows, inputs, outputs, tile, default_tile];
  return (
    sizes.every((size) => Number.isInteger(size) && size > 0) &&
    WEIGHT_DTYPES.includes(dtype) &&
    Object.values(ms).every((time) => time >= 0)
  );
}
