// One scenario of an engine with threads, in a process of its own: prints what it saw as JSON.
// Usage: node child.mjs SCENARIO
import { createRequire, syncBuiltinESMExports } from "node:module";

// Watches the workers that the package starts.
/** @type {typeof import("node:worker_threads")} */
const worker_threads = createRequire(import.meta.url)("node:worker_threads");
/** @type {import("node:worker_threads").Worker[]} */
const started = [];
let ended = 0;
worker_threads.Worker = class extends worker_threads.Worker {
  /** @param {URL} url @param {object} options */
  constructor(url, options) {
    super(scenario_name === "no_workers" ? new URL("./ends_at_once.mjs", import.meta.url) : url, options);
    started.push(this);
    super.once("exit", () => ended++);
  }
};
syncBuiltinESMExports();

const scenario_name = process.argv[2] ?? "";
const { env, Tensor, ViTMSNModel } = await import("vit-msn");
/** @type {string[]} */
const warnings = [];
env.warn = (message) => warnings.push(message);
const config = { hidden_size: 96, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 384 };
const pixel_values = new Tensor("float32", new Float32Array(3 * 224 * 224).fill(0.5), [1, 3, 224, 224]);
const load = (/** @type {number} */ num_threads) => ViTMSNModel.from_config(config, { num_threads });
const code_of = (/** @type {Promise<unknown>} */ promise) =>
  promise.then(
    () => "done",
    ({ code, message }) => `${code}: ${message}`,
  );

/** @type {Record<string, () => Promise<unknown>>} */
const scenarios = {
  /** Workers come and go with their models. */
  async cycles() {
    for (let i = 0; i < 50; i++) {
      const model = await load(3);
      if (i % 10 === 0) await model.forward({ pixel_values });
      await model.dispose();
    }
    return { started: started.length, ended };
  },

  /** A worker that is ended from outside, idle or at work. */
  async killed() {
    const model = await load(2);
    await model.forward({ pixel_values });
    const forward = code_of(model.forward({ pixel_values }));
    await started[0]?.terminate();
    const outcomes = [await forward, await code_of(model.forward({ pixel_values }))];
    await model.dispose();
    const other = await load(2);
    outcomes.push(await code_of(other.forward({ pixel_values })));
    await other.dispose();
    return outcomes;
  },

  /** Disposing in the middle of a forward. */
  async disposed() {
    const model = await load(3);
    const forward = code_of(model.forward({ pixel_values: many_pictures() }));
    await new Promise((resolve) => setTimeout(resolve, 40));
    await model.dispose();
    return { forward: await forward, started: started.length, ended };
  },

  /** Nobody disposes: the process ends all the same. */
  async forgotten() {
    const model = await load(3);
    await model.forward({ pixel_values });
    return model.engine_info.threads;
  },

  /** Workers that end before they begin. */
  async no_workers() {
    const model = await load(2);
    await model.forward({ pixel_values });
    return { ...model.engine_info, warnings };
  },

  /** Many more threads than cores. */
  async oversubscribed() {
    /** @type {Record<number, number>} */
    const times = {};
    for (const num_threads of [1, 24]) {
      const model = await load(num_threads);
      await model.forward({ pixel_values });
      const start = performance.now();
      for (let i = 0; i < 5; i++) await model.forward({ pixel_values });
      times[num_threads] = performance.now() - start;
      await model.dispose();
    }
    return times;
  },
};

function many_pictures() {
  return new Tensor("float32", new Float32Array(16 * 3 * 224 * 224).fill(0.5), [16, 3, 224, 224]);
}

console.log(JSON.stringify(await scenarios[scenario_name]?.()));
