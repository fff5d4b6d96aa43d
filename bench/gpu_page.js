// The page of bench/gpu.ts: measures in the browser what it is asked for, and gives rows.
import * as ort from "onnxruntime-web/webgpu";
import { Tensor, ViTMSNForImageClassification } from "vit-msn";

/**
 * @typedef {{ config: import("vit-msn").ViTMSNConfigInit, batch: number, image: number, rounds: number, tune: boolean, size: string,
 *   peer: boolean }} Job
 */

/** Milliseconds of each of `rounds` calls, after one that compiles. @param {() => Promise<unknown>} body @param {number} rounds */
async function time(body, rounds) {
  const times = [];
  for (let round = -1; round < rounds; round++) {
    const start = performance.now();
    await body();
    if (round >= 0) times.push(performance.now() - start);
  }
  return times;
}

/** The same noise as in Node. @param {number} batch @param {number} image */
function pictures(batch, image) {
  let state = 1;
  const data = Float32Array.from({ length: batch * 3 * image * image }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    return state / 2 ** 31 - 1;
  });
  return new Tensor("float32", data, [batch, 3, image, image]);
}

/** Forwards of this package on WebGPU. @param {Job} job @param {"sdpa" | "eager"} attn_implementation */
export async function ours({ config, batch, image, rounds, tune }, attn_implementation) {
  const options = { device: /** @type {const} */ ("webgpu"), attn_implementation };
  const model = await ViTMSNForImageClassification.from_config(config, options);
  const pixel_values = pictures(batch, image);
  const inputs = { pixel_values, interpolate_pos_encoding: true };
  /** @type {number[] | undefined} */
  let untuned;
  /** @type {readonly import("vit-msn").TileChoice[]} */
  let tiles = [];
  if (tune) {
    untuned = await time(() => model.forward(inputs), rounds);
    tiles = await model.tune(inputs);
  }
  /** @type {Float32Array | undefined} */
  let logits;
  const times = await time(async () => {
    const output = await model.forward(inputs);
    logits = output.logits.data;
  }, rounds);
  const { adapter } = model.engine_info;
  const profile = await model.profile(inputs);
  const dispatches = profile.ops.reduce((sum, op) => sum + op.dispatches, 0);
  await model.dispose();
  return { times, untuned, tiles, logits: [...(logits ?? [])], adapter, dispatches, table: profile.table() };
}

/** Forwards of onnxruntime-web's webgpu on the same weights. @param {Job} job */
export async function onnxruntime({ size, batch, image, rounds }) {
  ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(`/onnx/${size}`, { executionProviders: ["webgpu"] });
  const { data, dims } = pictures(batch, image);
  /** @type {Float32Array | undefined} */
  let logits;
  const times = await time(async () => {
    const outputs = await session.run({
      [String(session.inputNames[0])]: new ort.Tensor("float32", data, dims),
    });
    logits = /** @type {Float32Array} */ (await outputs[String(session.outputNames[0])]?.getData());
  }, rounds);
  await session.release();
  return { times, logits: [...(logits ?? [])] };
}
