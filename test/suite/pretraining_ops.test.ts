import { type PretrainedOptions, ViTMSNModel } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Handle, TensorHandle } from "../../ts/engine/engine.ts";
import type { TrainingEngine } from "../../ts/engine/training_engine.ts";
import { type GradientSink, Tape } from "../../ts/training/tape.ts";
import { open_device } from "../support/gpu_devices.ts";
import { type FixtureTensor, max_difference, read_tensors } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

// Each op of pre-training beside the reference's numbers, on every kind of engine.

const CONFIG = {
  hidden_size: 4,
  num_hidden_layers: 1,
  num_attention_heads: 1,
  intermediate_size: 4,
  image_size: 2,
  patch_size: 1,
};
const EPS = 1e-5;
/** Of each tensor's largest magnitude. */
const TOLERANCE = 1e-5;
/** What the reference ran: Sinkhorn's iterations, λ, the weight of the anchors' entropy. */
const RUNS = [
  { name: "sinkhorn", iterations: 3, me_max_weight: 1, entropy_weight: 0 },
  { name: "plain", iterations: 0, me_max_weight: 5, entropy_weight: 0.1 },
] as const;
const [TAU, SHARPEN] = [0.1, 0.25];

const ENGINES: readonly { kind: string; options: PretrainedOptions }[] = [
  { kind: "one thread", options: { num_threads: 1 } },
  ...(typeof document === "undefined" ? [{ kind: "two threads", options: { num_threads: 2 } }] : []),
  { kind: "a Worker", options: { num_threads: 1, worker: true } },
  ...(no_webgpu === undefined ? [{ kind: "WebGPU", options: { num_threads: 1 } }] : []),
];

/** Keeps the gradients of plain tensors. */
class Gradients implements GradientSink {
  readonly found = new Map<Handle, TensorHandle>();
  readonly #wanted: readonly Handle[];

  constructor(wanted: readonly Handle[]) {
    this.#wanted = wanted;
  }

  wants(parameter: Handle): boolean {
    return this.#wanted.includes(parameter);
  }

  add(parameter: TensorHandle, gradient: TensorHandle): void {
    expect(this.found.has(parameter)).toBe(false);
    this.found.set(parameter, gradient);
  }

  add_linear(): void {
    throw new Error("There is no linear layer here.");
  }
}

// A software GPU compiles each kernel for seconds.
describe.each(ENGINES)("the ops of pre-training on $kind", ({ kind, options }) => {
  let model: ViTMSNModel;
  let engine: TrainingEngine;
  let fixture: Map<string, FixtureTensor>;
  let handles: number;

  beforeAll(async () => {
    const device = kind === "WebGPU" ? { device: await open_device() } : {};
    model = await ViTMSNModel.from_config(CONFIG, { ...options, ...device });
    engine = model.engine as unknown as TrainingEngine;
    fixture = await read_tensors("test/fixtures/pretraining/expected.safetensors");
    handles = engine.memory().handles;
  });
  afterAll(async () => {
    // Every test frees what it made.
    expect(engine.memory().handles).toBe(handles);
    await model.dispose();
  });

  const part = (key: string) => fixture.get(`part.${key}`) as FixtureTensor & { data: Float32Array };
  const upload = (key: string) => engine.tensor(part(key).data, part(key).dims);
  function free(...made: readonly TensorHandle[]): void {
    for (const handle of made) engine.free(handle);
  }

  async function expect_close(
    handle: TensorHandle,
    { dims, data }: Pick<FixtureTensor, "dims" | "data">,
  ): Promise<void> {
    const wanted = data as Float32Array;
    expect(engine.dims(handle)).toEqual(dims);
    const scale = wanted.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    expect(max_difference(await engine.read(handle), wanted) / scale).toBeLessThanOrEqual(TOLERANCE);
  }

  test("batch norm: values, running statistics, evaluation", async () => {
    const [x, weight, bias] = [upload("bn.x"), upload("bn.weight"), upload("bn.bias")];
    const { y, mean, variance } = engine.batch_norm(x, weight, bias, EPS);
    await expect_close(y, part("bn.y"));
    const width = part("bn.weight").data.length;
    const running_mean = engine.tensor(new Float32Array(width), [width]);
    const running_var = engine.tensor(new Float32Array(width).fill(1), [width]);
    engine.ema(running_mean, mean, 0.9);
    engine.ema(running_var, variance, 0.9);
    await expect_close(running_mean, part("bn.running_mean"));
    await expect_close(running_var, part("bn.running_var"));
    const evaluated = engine.batch_norm_inference(x, weight, bias, running_mean, running_var, EPS);
    await expect_close(evaluated, part("bn.eval"));
    free(x, weight, bias, y, mean, variance, running_mean, running_var, evaluated);
  });

  test("batch norm: gradients", async () => {
    const [dy, x, weight] = [upload("bn.dy"), upload("bn.x"), upload("bn.weight")];
    const by = engine.batch_norm_backward(dy, x, weight, EPS);
    await expect_close(by.x, part("bn.dx"));
    await expect_close(by.weight, part("bn.dweight"));
    await expect_close(by.bias, part("bn.dbias"));
    free(dy, x, weight, by.x, by.weight, by.bias);
  });

  test("Sinkhorn", async () => {
    // The softmax of logarithms at the temperature 1 is what they are of.
    const { data, dims } = part("sinkhorn.in");
    const logits = engine.tensor(data.map(Math.log), dims);
    const [sharp, targets] = [engine.msn_targets(logits, 1, 0), engine.msn_targets(logits, 1, 3)];
    await expect_close(sharp, part("sinkhorn.in"));
    await expect_close(targets, part("sinkhorn.out"));
    free(logits, sharp, targets);
  });

  test("the first step's probabilities and targets", async () => {
    const prototypes_of = fixture.get("in.prototypes") as FixtureTensor;
    const prototypes = engine.tensor(prototypes_of.data as Float32Array, prototypes_of.dims);
    for (const { name, iterations } of RUNS) {
      const first = (key: string) => fixture.get(`${name}.first.${key}`) as FixtureTensor;
      const z_target = engine.tensor(first("z_target").data as Float32Array, first("z_target").dims);
      const z = engine.tensor(first("z").data as Float32Array, first("z").dims);
      const logits = engine.prototype_logits(z_target, prototypes, TAU);
      const anchors = engine.prototype_logits(z, prototypes, TAU);
      const probs = engine.msn_targets(anchors, 1, 0);
      const sharp = engine.msn_targets(logits, SHARPEN, 0);
      const targets = engine.msn_targets(logits, SHARPEN, iterations);
      await expect_close(probs, first("probs"));
      await expect_close(sharp, first("sharp"));
      await expect_close(targets, first("targets"));
      free(z_target, z, logits, anchors, probs, sharp, targets);
    }
    free(prototypes);
  });

  test.each(RUNS)("the loss and its gradients through the tape: $name", async (run) => {
    const { data, dims } = part("loss.z");
    const [rows, width] = dims as [number, number];
    const views = [0, 1].map((view) => {
      const half = data.slice((view * data.length) / 2, ((view + 1) * data.length) / 2);
      return engine.tensor(half, [rows / 2, width]);
    }) as [TensorHandle, TensorHandle];
    const [prototypes, z_target] = [upload("loss.prototypes"), upload("loss.z_target")];
    const target_logits = engine.prototype_logits(z_target, prototypes, TAU);
    const targets = engine.msn_targets(target_logits, SHARPEN, run.iterations);
    const sink = new Gradients([...views, prototypes]);
    const tape = new Tape(engine, sink);
    const z = tape.concat_rows(...views);
    const logits = tape.prototype_logits(z, prototypes, TAU);
    const terms = tape.msn_loss(logits, targets, run.me_max_weight, run.entropy_weight);
    await expect_close(terms, part(`loss.${run.name}.terms`));
    const scale = 0.5;
    await tape.backward(terms, scale);
    for (const made of [z, logits, terms]) tape.free(made);
    tape.close();
    const dz = part(`loss.${run.name}.dz`).data.map((value) => value * scale);
    const by = (parameter: TensorHandle) => sink.found.get(parameter) as TensorHandle;
    const half = [rows / 2, width];
    await expect_close(by(views[0]), { dims: half, data: dz.slice(0, dz.length / 2) });
    await expect_close(by(views[1]), { dims: half, data: dz.slice(dz.length / 2) });
    const dprototypes = part(`loss.${run.name}.dprototypes`);
    await expect_close(by(prototypes), {
      dims: dprototypes.dims,
      data: dprototypes.data.map((value) => value * scale),
    });
    free(...views, prototypes, z_target, target_logits, targets, ...sink.found.values());
  });

  test("a projection head's layer on the tape: batch norm and its activation", async () => {
    const [x, weight, bias] = [upload("bn.x"), upload("bn.weight"), upload("bn.bias")];
    const sink = new Gradients([x, weight, bias]);
    const tape = new Tape(engine, sink);
    const { y, mean, variance } = tape.batch_norm(x, weight, bias, EPS);
    const activated = tape.activate(y, "gelu");
    const wanted = engine.tensor(new Float32Array(35), [7, 5]);
    const loss = tape.mse_loss(activated, wanted);
    await tape.backward(loss);
    for (const made of [y, mean, variance, activated, loss]) tape.free(made);
    tape.close();
    // By the engine's own ops, which the tests above hold to the reference.
    const again = engine.batch_norm(x, weight, bias, EPS);
    const gelu = engine.activate(again.y, "gelu");
    const by_gelu = engine.mse_loss_backward(gelu, wanted);
    const by_y = engine.activate_backward(by_gelu, again.y, "gelu");
    const by = engine.batch_norm_backward(by_y, x, weight, EPS);
    for (const [parameter, gradient] of [
      [x, by.x],
      [weight, by.weight],
      [bias, by.bias],
    ] as const) {
      const found = sink.found.get(parameter) as TensorHandle;
      expect(await engine.read(found)).toEqual(await engine.read(gradient));
    }
    free(x, weight, bias, wanted, gelu, by_gelu, by_y, ...Object.values(again), ...Object.values(by));
    free(...sink.found.values());
  });

  test("invalid shapes are refused, and the engine stays usable", async () => {
    const x = engine.tensor(Float32Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
    const row = engine.tensor(Float32Array.of(1, 2, 3), [1, 3]);
    const weight = engine.tensor(Float32Array.of(1, 2, 3), [3]);
    const short = engine.tensor(Float32Array.of(1, 2), [2]);
    const codes = [];
    const ops: readonly (() => TensorHandle | { x: TensorHandle } | { y: TensorHandle })[] = [
      () => engine.batch_norm(row, weight, weight, EPS),
      () => engine.batch_norm(x, short, short, EPS),
      () => engine.prototype_logits(x, x, 0),
      () => engine.msn_targets(x, -1, 3),
      () => engine.msn_loss(x, weight, 1, 0),
      () => engine.msn_loss(x, x, Number.NaN, 0),
    ];
    for (const op of ops) {
      try {
        // In a Worker an op fails where its result is waited for.
        const made = op();
        const results = (typeof made === "number" ? [made] : Object.values(made)) as TensorHandle[];
        try {
          await engine.read(results[0] as TensorHandle);
        } finally {
          free(...results);
        }
      } catch (error) {
        codes.push((error as { code?: string }).code);
      }
    }
    expect(codes).toEqual(Array(ops.length).fill("INVALID_ARGUMENT"));
    const logits = engine.prototype_logits(x, row, 0.5);
    expect((await engine.read(logits)).every(Number.isFinite)).toBe(true);
    free(x, row, weight, short, logits);
  });
});
