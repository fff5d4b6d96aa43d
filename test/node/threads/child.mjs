// One scenario of an engine with threads, in a separate process: prints what it saw as JSON.
// Usage: node child.mjs SCENARIO
import { readdirSync } from "node:fs";
import { createRequire, syncBuiltinESMExports } from "node:module";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

// Watches the workers that the package starts.
/** @type {typeof import("node:worker_threads")} */
const worker_threads = createRequire(import.meta.url)("node:worker_threads");
/** @type {import("node:worker_threads").Worker[]} */
const started = [];
let ended = 0;
worker_threads.Worker = class extends worker_threads.Worker {
  /** @param {URL} url @param {object} options */
  constructor(url, options) {
    super(scenario_name.startsWith("no_") ? new URL("./ends_at_once.mjs", import.meta.url) : url, options);
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
const load = (/** @type {number} */ num_threads, worker = false) =>
  ViTMSNModel.from_config(config, { num_threads, worker });
const code_of = (/** @type {Promise<unknown>} */ promise) =>
  promise.then(
    () => "done",
    ({ code, message }) => `${code}: ${message}`,
  );

/** @type {Record<string, () => Promise<unknown>>} */
const scenarios = {
  /** Workers come and go with their models. */
  async cycles() {
    for (let i = 0; i < 20; i++) {
      const model = await load(3);
      if (i % 10 === 0) await model.forward({ pixel_values });
      await model.dispose();
    }
    return { started: started.length, ended };
  },

  /** A worker that is ended from outside, idle or at work. */
  killed: () => kill(false),

  /** The Worker of an engine, which has its own threads. */
  killed_engine: () => kill(true),

  /** Models with threads, with a Worker and with both, that are neither disposed nor referenced any more. */
  async dropped() {
    for (let i = 0; i < 3; i++) {
      for (const [num_threads, worker] of /** @type {const} */ ([
        [2, false],
        [1, true],
        [2, true],
      ])) {
        await (await load(num_threads, worker)).forward({ pixel_values });
      }
    }
    setFlagsFromString("--expose-gc");
    const collect_garbage = runInNewContext("gc");
    while (ended < started.length) {
      collect_garbage();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return { started: started.length, ended };
  },

  /** Disposing of an engine's Worker ends its threads. */
  async nested() {
    const threads = () => readdirSync("/proc/self/task").length;
    const model = await load(1, true);
    await model.dispose();
    const before = threads();
    for (let i = 0; i < 5; i++) {
      const other = await load(3, true);
      await other.forward({ pixel_values });
      await other.dispose();
    }
    while (threads() > before) await new Promise((resolve) => setTimeout(resolve, 20));
    return { before, after: threads() };
  },

  /** Disposing in the middle of a forward pass. */
  async disposed() {
    const model = await load(3);
    /** @type {Promise<void> | undefined} */
    let disposed;
    let looks = 0;
    const signal = new AbortController().signal;
    // A forward pass looks at its signal between layers.
    Object.defineProperty(signal, "aborted", {
      get() {
        if (++looks === 3) disposed = model.dispose();
        return false;
      },
    });
    const forward = await code_of(model.forward({ pixel_values: many_images(), signal }));
    await disposed;
    return { forward, started: started.length, ended };
  },

  /** Models that aren't disposed: the process ends all the same. */
  async forgotten() {
    const models = [await load(3), await load(3, true)];
    for (const model of models) await model.forward({ pixel_values });
    return models.map((model) => model.engine_info.threads);
  },

  /** Workers that end before they start. */
  no_workers: () => load_without(false),
  no_engine_worker: () => load_without(true),

  /** Training's losses and weights, with one thread and with several. */
  async trained() {
    const { ViTMSNForImageClassification } = await import("vit-msn");
    const { Trainer } = await import("vit-msn/training");
    const sizes = { image_size: 32, patch_size: 8, num_labels: 3, attention_probs_dropout_prob: 0.1 };
    const images = Float32Array.from({ length: 6 * 3 * 32 * 32 }, (_, i) => Math.sin(i));
    const train_dataset = {
      pixel_values: new Tensor("float32", images, [6, 3, 32, 32]),
      labels: [0, 1, 2, 0, 1, 2],
    };
    const runs = [];
    for (const num_threads of [1, 2, 3]) {
      const options = { num_threads, seed: 1 };
      const model = await ViTMSNForImageClassification.from_config({ ...config, ...sizes }, options);
      const args = {
        max_steps: 3,
        per_device_train_batch_size: 4,
        save_strategy: /** @type {const} */ ("no"),
        logging_steps: 1,
      };
      const trainer = new Trainer({ model, train_dataset, args });
      await trainer.train();
      const { logits } = await model.forward({ pixel_values: train_dataset.pixel_values });
      const losses = trainer.state.log_history.map(({ loss }) => loss);
      runs.push({ threads: model.engine_info.threads, losses, logits: [...logits.data] });
      await model.dispose();
    }
    return runs;
  },

  /** Many more threads than cores: the processor's time, which other programs leave alone. */
  async oversubscribed() {
    /** @type {Record<number, number>} */
    const times = {};
    for (const num_threads of [1, 24]) {
      const model = await load(num_threads);
      await model.forward({ pixel_values });
      const before = process.cpuUsage();
      for (let i = 0; i < 5; i++) await model.forward({ pixel_values });
      const { user, system } = process.cpuUsage(before);
      times[num_threads] = user + system;
      await model.dispose();
    }
    return times;
  },
};

async function kill(/** @type {boolean} */ worker) {
  const model = await load(2, worker);
  await model.forward({ pixel_values });
  const forward = code_of(model.forward({ pixel_values }));
  await started[0]?.terminate();
  const outcomes = [await forward, await code_of(model.forward({ pixel_values }))];
  await model.dispose();
  const other = await load(2);
  outcomes.push(await code_of(other.forward({ pixel_values })));
  await other.dispose();
  return outcomes;
}

async function load_without(/** @type {boolean} */ worker) {
  const model = await load(2, worker);
  await model.forward({ pixel_values });
  return { ...model.engine_info, warnings };
}

function many_images() {
  return new Tensor("float32", new Float32Array(16 * 3 * 224 * 224).fill(0.5), [16, 3, 224, 224]);
}

console.log(JSON.stringify(await scenarios[scenario_name]?.()));
