// What bench/gpu.ts measures: a module of its page in Chromium, and of bench/gpu_program.mjs in Node and Deno.
import { env, Tensor, ViTMSNForImageClassification } from "vit-msn";

/**
 * @typedef {{ config: import("vit-msn").ViTMSNConfigInit, dtype: import("vit-msn").DtypeName, batch: number, image: number,
 *   rounds: number, tune: boolean, profile: boolean, size: string }} Job
 */

/** Milliseconds of each of `count` calls. @param {() => Promise<unknown>} body @param {number} count */
async function time(body, count) {
  const times = [];
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    await body();
    times.push(performance.now() - start);
  }
  return times;
}

/** The same noise as in Node. @param {number} batch @param {number} image */
function images(batch, image) {
  let state = 1;
  const data = Float32Array.from({ length: batch * 3 * image * image }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    return state / 2 ** 31 - 1;
  });
  return new Tensor("float32", data, [batch, 3, image, image]);
}

/** Forwards of this package on WebGPU. @param {Job} job @param {"sdpa" | "eager"} attn_implementation */
export async function ours({ config, dtype, batch, image, rounds, tune, profile }, attn_implementation) {
  // The untuned time mustn't use tiles that an earlier run chose.
  env.use_cache = false;
  const options = { device: /** @type {const} */ ("webgpu"), dtype, attn_implementation };
  const model = await ViTMSNForImageClassification.from_config(config, options);
  const inputs = { pixel_values: images(batch, image), interpolate_pos_encoding: true };
  /** @type {Float32Array | undefined} */
  let logits;
  const forward = async () => {
    logits = (await model.forward(inputs)).logits.data;
  };
  const [first = Number.NaN] = await time(forward, 1);
  let times = await time(forward, rounds);
  const second = times[0] ?? Number.NaN;
  /** @type {number[] | undefined} */
  let untuned;
  /** @type {readonly import("vit-msn").TileChoice[]} */
  let tiles = [];
  if (tune) {
    untuned = times;
    tiles = await model.tune(inputs);
    await forward();
    times = await time(forward, rounds);
  }
  const { adapter } = model.engine_info;
  const profiled = profile ? await model.profile(inputs) : undefined;
  const dispatches = profiled?.ops.reduce((sum, op) => sum + op.dispatches, 0);
  await model.dispose();
  const table = profiled?.table();
  return { first, second, times, untuned, tiles, logits: [...(logits ?? [])], adapter, dispatches, table };
}

/** Forwards of onnxruntime-web's webgpu on the same weights, in Chromium. @param {Job} job */
export async function onnxruntime({ size, batch, image, rounds }) {
  const ort = await import("onnxruntime-web/webgpu");
  ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(`/onnx/${size}`, { executionProviders: ["webgpu"] });
  const { data, dims } = images(batch, image);
  /** @type {Float32Array | undefined} */
  let logits;
  const forward = async () => {
    const outputs = await session.run({
      [String(session.inputNames[0])]: new ort.Tensor("float32", data, dims),
    });
    logits = /** @type {Float32Array} */ (await outputs[String(session.outputNames[0])]?.getData());
  };
  const [first = Number.NaN] = await time(forward, 1);
  const times = await time(forward, rounds);
  await session.release();
  return { first, times, logits: [...(logits ?? [])] };
}
