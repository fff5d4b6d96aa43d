import { VitMsnError } from "../../errors.ts";
import type { Engine, LayerShape, LinearHandle, TensorHandle, TileChoice, TiledEngine } from "../engine.ts";

/** Min time in ms for which a tile is timed, because clocks in browsers are coarse. */
const MIN_MS = 4;
/** Max runs of a layer for one time: all are one submission. */
const MAX_TIMES = 256;

/**
 * Chooses the tiles of the linear layers that a forward pass runs.
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
  return choose_tiles(engine.tiled, notes.layers.values(), again);
}

/** Notes the shapes of a forward pass's linear layers. */
class LayerNotes {
  /** The engine to run the forward pass on. */
  readonly engine: Engine;
  readonly layers = new Map<string, { weights: LinearHandle; rows: number }>();

  constructor(engine: Engine) {
    const note = (weights: LinearHandle, result: TensorHandle) => {
      const rows = engine
        .dims(result)
        .slice(0, -1)
        .reduce((product, size) => product * size, 1);
      this.layers.set(`${weights} ${rows}`, { weights, rows });
      return result;
    };
    const noting: Partial<Engine> = {
      linear: (x, weights, ...rest) => note(weights, engine.linear(x, weights, ...rest)),
      patch_embed: (pixels, weights, patch) => note(weights, engine.patch_embed(pixels, weights, patch)),
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
  layers: Iterable<{ weights: LinearHandle; rows: number }>,
  again: boolean,
): Promise<TileChoice[]> {
  const found = new Map<string, TileChoice>();
  const measured: TileChoice[] = [];
  for (const { weights, rows } of layers) {
    const shape = engine.layer_shape(weights, rows);
    const key = JSON.stringify(shape);
    if (found.has(key)) continue;
    const earlier = again ? undefined : engine.chosen(shape);
    const choice =
      earlier && engine.still_holds(earlier) ? earlier : await fastest_of(engine, shape, weights);
    engine.choose_tile(shape, choice.tile);
    found.set(key, choice);
    if (choice !== earlier && Object.keys(choice.ms).length > 0) measured.push(choice);
  }
  if (measured.length > 0) await engine.remember(measured);
  return [...found.values()];
}

async function fastest_of(
  engine: TiledEngine,
  shape: LayerShape,
  weights: LinearHandle,
): Promise<TileChoice> {
  const tiles = engine.tiles(shape);
  const default_tile = tiles[0] as string;
  const ms: Record<string, number> = {};
  if (tiles.length > 1) {
    for (const tile of tiles) {
      engine.choose_tile(shape, tile);
      ms[tile] = await time_of(engine, weights, shape.rows);
    }
  }
  const time = (tile: string) => ms[tile] ?? 0;
  const tile = tiles.reduce((best, other) => (time(other) < time(best) ? other : best), default_tile);
  return Object.freeze({ ...shape, tile, default_tile, ms: Object.freeze(ms) });
}

/** The best of three times, each long enough for a coarse clock, after a run that compiles. */
async function time_of(engine: TiledEngine, weights: LinearHandle, rows: number): Promise<number> {
  await engine.time_layer(weights, rows, 1);
  let times = 1;
  let best = await engine.time_layer(weights, rows, times);
  while (best < MIN_MS && times < MAX_TIMES) {
    times *= 4;
    best = await engine.time_layer(weights, rows, times);
  }
  for (let i = 0; i < 2; i++) best = Math.min(best, await engine.time_layer(weights, rows, times));
  return best / times;
}
