import type { Activation } from "../engine.ts";
import { create_wasm_engine, type WasmEngine } from "./wasm_engine.ts";

/** Runs a product of one of the engines, and returns how long it took in milliseconds. */
export type Time = (engine: "ordinary" | "wide", run: () => void) => number;

/** A linear layer of a few tiles that takes a fraction of a millisecond, so that some runs aren't interrupted. */
const ROWS = 42;
const [INPUTS, OUTPUTS] = [512, 512];
/**
 * Times of the wide engine, relative to the ordinary one's, that show that vectors are joined. Measured: 0.5 if they are,
 * 1.5 if not; smaller ones mean that the ordinary engine isn't compiled by the optimising compiler yet.
 */
const [JOINED_LEAST, JOINED_MOST] = [0.25, 0.85];
const NOT_JOINED = 1.1;
/** By how much the optimising compiler's code is faster than that of the first run, at least. */
const OPTIMISED = 2.5;
const MIN_ROUNDS = 10;
const MAX_MS = 1000;

/**
 * Compares the wide engine with the ordinary one: undefined if it gives the same bits and its vectors are joined, else
 * a sentence with the reason.
 */
export async function check_wide(
  ordinary: WebAssembly.Module,
  wide: WebAssembly.Module,
  time: Time = stopwatch,
): Promise<string | undefined> {
  const products = [new Product(ordinary), new Product(wide)] as const;
  try {
    const is_joined = measure(
      () => time("ordinary", products[0].run),
      () => time("wide", products[1].run),
    );
    // Only now are the products computed by the optimised code.
    const [expected, result] = [await products[0].bits(), await products[1].bits()];
    if (!result.every((bits, i) => bits === expected[i])) {
      return "The engine for wide vectors doesn't give the same bits here.";
    }
    return is_joined ? undefined : "V8 doesn't join vectors here, or they aren't faster (AVX2 is needed).";
  } finally {
    for (const product of products) product.close();
  }
}

/** Whether the wide engine's best time shows that its vectors are joined, once both engines' code is optimised. */
function measure(ordinary: () => number, wide: () => number): boolean {
  let [best_ordinary, best_wide, total] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, 0];
  let first: number | undefined;
  let rounds = 0;
  const is_within = (ratio: number) => ratio >= JOINED_LEAST && ratio <= JOINED_MOST;
  while (total < MAX_MS) {
    const times = [ordinary(), wide()] as const;
    first ??= times[1];
    total += times[0] + times[1];
    best_ordinary = Math.min(best_ordinary, times[0]);
    best_wide = Math.min(best_wide, times[1]);
    rounds = best_wide * OPTIMISED > first ? 0 : rounds + 1;
    const ratio = best_wide / best_ordinary;
    if (rounds >= MIN_ROUNDS && (ratio >= NOT_JOINED || is_within(ratio))) break;
  }
  return is_within(best_wide / best_ordinary);
}

/** A linear layer of one engine. */
class Product {
  readonly #engine: WasmEngine;
  readonly #x;
  readonly #weights;

  constructor(module: WebAssembly.Module) {
    this.#engine = create_wasm_engine(module);
    this.#x = this.#engine.tensor(values(ROWS * INPUTS), [ROWS, INPUTS]);
    this.#weights = this.#engine.linear_weights(OUTPUTS, INPUTS, "float32", false);
    this.#engine.set_rows(this.#weights, 0, new Uint8Array(values(OUTPUTS * INPUTS).buffer), "float32");
  }

  readonly run = (): void => this.#engine.free(this.#multiply());

  async bits(): Promise<Uint32Array> {
    const { buffer } = await this.#engine.read(this.#multiply());
    return new Uint32Array(buffer);
  }

  close(): void {
    void this.#engine.dispose();
  }

  #multiply() {
    return this.#engine.linear(this.#x, this.#weights, "identity" satisfies Activation);
  }
}

/** Values between −1 and 1 whose sums are rounded. */
function values(count: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: count }, (_, i) => Math.sin(i * 0.7));
}

function stopwatch(_: "ordinary" | "wide", run: () => void): number {
  const start = performance.now();
  run();
  return performance.now() - start;
}
