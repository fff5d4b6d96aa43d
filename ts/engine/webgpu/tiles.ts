import { VitMsnError } from "../../errors.ts";
import type { Engine, LayerShape, LinearHandle, TensorHandle, TileChoice, TiledEngine } from "../engine.ts";
import { shape_key } from "./tile_cache.ts";

/** Min time in ms for which a tile is timed, because clocks in browsers are coarse. */
const MIN_MS = 4;
/** Max runs of a layer for one time: all are one submission. */
const MAX_TIMES = 256;

/**
 * Chooses the tiles of the linear layers and attention that a forward pass runs.
 * @throws VitMsnError UNSUPPORTED for an engine without tiles.
 */
export async function tune(
  engine: Engine,
  { again = false }: { again?: boolean },
  forward: (noting: Engine) => Promise<unknown>,
): Promise<readonly TileChoice[]> {
  if (engine.tiled === undefined) {
    throw new VitMsnError(
      "UNSUPPORTED",
      'tune() is for models on WebGPU: load the model with device: "webgpu".',
    );
  }
  const notes = new LayerNotes(engine);
  await forward(notes.engine);
  return choose_tiles(engine.tiled, notes.used.values(), again);
}

/** A shape, and the weights of a linear layer of that shape. */
interface Used {
  shape: LayerShape;
  weights: LinearHandle | undefined;
}

/** Notes the shapes of a forward pass's linear layers. */
class LayerNotes {
  /** The engine to run the forward pass on. */
  readonly engine: Engine;
  /** By shape. */
  readonly used = new Map<string, Used>();

  constructor(engine: Engine) {
    const add = (shape: LayerShape, weights?: LinearHandle) => {
      const key = shape_key(shape);
      if (!this.used.has(key)) this.used.set(key, { shape, weights });
    };
    const note = (weights: LinearHandle, result: TensorHandle) => {
      const rows = engine
        .dims(result)
        .slice(0, -1)
        .reduce((product, size) => product * size, 1);
      add((engine.tiled as TiledEngine).layer_shape(weights, rows), weights);
      return result;
    };
    const noting: Partial<Engine> = {
      linear: (x, weights, ...rest) => note(weights, engine.linear(x, weights, ...rest)),
      patch_embed: (pixels, weights, patch) => note(weights, engine.patch_embed(pixels, weights, patch)),
      scaled_dot_product_attention: (qkv, num_heads, reader) => {
        const [batch, rows, width] = engine.dims(qkv) as [number, number, number];
        const [inputs, outputs] = [width / num_heads / 3, batch * num_heads];
        add({ op: "attention", rows, inputs, outputs, dtype: "float32" });
        return engine.scaled_dot_product_attention(qkv, num_heads, reader);
      },
    };
    this.engine = new Proxy(engine, {
      get: (target, name) => {
        if (Object.hasOwn(noting, name)) return noting[name as keyof Engine];
        const member = Reflect.get(target, name, target) as unknown;
        return typeof member === "function" ? member.bind(target) : member;
      },
    });
  }
}

/** Times the tiles for each shape without a choice, or for all with `again`; the engine then uses the fastest. */
async function choose_tiles(
  engine: TiledEngine,
  used: Iterable<Used>,
  again: boolean,
): Promise<TileChoice[]> {
  const choices: TileChoice[] = [];
  const measured: TileChoice[] = [];
  for (const { shape, weights } of used) {
    const earlier = again ? undefined : engine.chosen(shape);
    const choice =
      earlier && engine.still_holds(earlier) ? earlier : await fastest_of(engine, shape, weights);
    engine.choose_tile(shape, choice.tile);
    choices.push(choice);
    if (choice !== earlier && Object.keys(choice.ms).length > 0) measured.push(choice);
  }
  if (measured.length > 0) await engine.remember(measured);
  return choices;
}

async function fastest_of(
  engine: TiledEngine,
  shape: LayerShape,
  weights: LinearHandle | undefined,
): Promise<TileChoice> {
  const tiles = engine.tiles(shape);
  const default_tile = tiles[0] as string;
  const ms: Record<string, number> = {};
  if (tiles.length > 1) {
    for (const tile of tiles) {
      engine.choose_tile(shape, tile);
      ms[tile] = await time_of((times) => engine.time(shape, weights, times));
    }
  }
  const time = (tile: string) => ms[tile] ?? 0;
  const tile = tiles.reduce((best, other) => (time(other) < time(best) ? other : best), default_tile);
  return Object.freeze({ ...shape, tile, default_tile, ms: Object.freeze(ms) });
}

/** The best of three times, each long enough for a coarse clock, after a run that compiles. */
async function time_of(run: (times: number) => Promise<number>): Promise<number> {
  await run(1);
  let times = 1;
  let best = await run(times);
  while (best < MIN_MS && times < MAX_TIMES) {
    times *= 4;
    best = await run(times);
  }
  for (let i = 0; i < 2; i++) best = Math.min(best, await run(times));
  return best / times;
}
