import { type ForwardInputs, Tensor, ViTMSNForImageClassification, ViTMSNModel, VitMsnError } from "vit-msn";
import { max_difference } from "../support/tensors.ts";
import { type ForwardCase, make_random, type StressCase } from "./cases.ts";

/** The largest difference of sdpa and eager, and of a batch and its images alone, by the largest value where that is above 1. */
const TOLERANCE = 1e-4;

/** The same for int8, where the least difference of a layer's input may round to the next whole number. */
const INT8_TOLERANCE = 5e-2;

type Model = ViTMSNModel | ViTMSNForImageClassification;
type Inputs = ForwardInputs & { pixel_values: Tensor<"float32">; labels?: Tensor };
type Answer = Map<string, Tensor>;

/** What happened to a forward pass: an answer, or the code of the error. */
type Outcome = { answer: Answer } | { code: string };

/**
 * Runs a case: its forwards all at once on one model, disturbed; then each again, alone and undisturbed, by sdpa and by
 * eager attention.
 * @throws Error that says what was wrong.
 */
export async function run_case(stress_case: StressCase): Promise<void> {
  const [disturbed, plain, eager] = (await Promise.all([
    open(stress_case, "sdpa", stress_case.num_threads, stress_case.worker),
    open(stress_case, "sdpa", stress_case.num_threads),
    open(stress_case, "eager", 1),
  ])) as [Model, Model, Model];
  try {
    const before = [disturbed, plain, eager].map((model) => model.memory());
    const outcomes = await Promise.all(stress_case.forwards.map((f) => disturb(disturbed, f)));
    const disposed = stress_case.forwards.some((f) => f.disturbance.kind === "dispose");
    for (const [i, forward] of stress_case.forwards.entries()) {
      try {
        await check_forward(forward, outcomes[i] as Outcome, disposed, plain, eager);
      } catch (error) {
        throw new Error(`Forward ${i}: ${(error as Error).message}`, { cause: error });
      }
    }
    const left = disposed ? [plain, eager] : [disturbed, plain, eager];
    const at_first = disposed ? before.slice(1) : before;
    for (const [i, model] of left.entries()) {
      const { handles, bytes } = await final_memory(model, at_first[i]?.bytes as number);
      same(handles, at_first[i]?.handles, "live handles");
      same(bytes, at_first[i]?.bytes, "live bytes");
    }
    if (disposed) await expect_disposed(disturbed);
  } finally {
    await Promise.all([disturbed, plain, eager].map((model) => model.dispose()));
  }
}

function open(
  { classifier, config, dtype, seed }: StressCase,
  attn_implementation: "sdpa" | "eager",
  num_threads: number,
  worker = false,
) {
  const options = { dtype, seed, attn_implementation, num_threads, worker };
  return classifier
    ? ViTMSNForImageClassification.from_config(config, options)
    : ViTMSNModel.from_config(config, { ...options, use_mask_token: true });
}

/** What a model holds at the end: an engine in a Worker reports it soon after. */
async function final_memory(model: Model, bytes: number): Promise<{ handles: number; bytes: number }> {
  for (let i = 0; i < 1000 && model.memory().bytes !== bytes; i++)
    await new Promise((resolve) => setTimeout(resolve, 20));
  return model.memory();
}

/** Starts a forward pass and aborts it or disposes the model after some turns of the microtask queue. */
async function disturb(model: Model, forward: ForwardCase): Promise<Outcome> {
  const { disturbance } = forward;
  const controller = new AbortController();
  const inputs = { ...make_inputs(model, forward), signal: controller.signal };
  const outcome = forward_outcome(model, inputs);
  if (disturbance.kind !== "none") {
    for (let i = 0; i < disturbance.after; i++) await undefined;
    if (disturbance.kind === "abort") controller.abort();
    else await model.dispose();
  }
  return outcome;
}

async function forward_outcome(model: Model, inputs: Inputs): Promise<Outcome> {
  try {
    return { answer: answer_of(await model.forward(inputs)) };
  } catch (error) {
    if (!(error instanceof VitMsnError)) throw error;
    return { code: error.code };
  }
}

/** The tensors of an output by name. */
function answer_of(output: object): Answer {
  const named = Object.entries(output).flatMap(([name, value]: [string, Tensor | Tensor[]]) =>
    Array.isArray(value) ? value.map((t, i) => [`${name}[${i}]`, t] as const) : [[name, value] as const],
  );
  return new Map(named);
}

async function check_forward(
  forward: ForwardCase,
  outcome: Outcome,
  disposed: boolean,
  plain: Model,
  eager: Model,
): Promise<void> {
  const inputs = make_inputs(plain, forward);
  const [again, by_eager] = await Promise.all([
    forward_outcome(plain, inputs),
    forward_outcome(eager, inputs),
  ]);
  if ("code" in again || "code" in by_eager) {
    const codes = [again, by_eager, outcome].map((o) => ("code" in o ? o.code : "an answer"));
    const allowed = ["INVALID_ARGUMENT", ...codes_of(forward, disposed)];
    const refused = forward.mistake !== undefined && codes[0] === "INVALID_ARGUMENT" && codes[1] === codes[0];
    if (!refused || !allowed.includes(codes[2] as string)) throw new Error(`ended with ${codes.join(", ")}`);
    return;
  }
  if (forward.mistake !== undefined) throw new Error(`a mistake in ${forward.mistake} was not refused`);
  if ("code" in outcome) {
    if (!codes_of(forward, disposed).includes(outcome.code)) throw new Error(`ended with ${outcome.code}`);
  } else {
    close_answers(outcome.answer, again.answer, 0, "disturbed and plain");
  }
  const tolerance = plain.dtype === "int8" ? INT8_TOLERANCE : TOLERANCE;
  close_answers(again.answer, by_eager.answer, tolerance, "sdpa and eager");
  check_attentions(again.answer);
  await check_one_image(plain, inputs, again.answer, forward.seed % forward.batch, tolerance);
}

/** The errors that a sound forward pass may end with. */
function codes_of({ disturbance }: ForwardCase, disposed: boolean): string[] {
  return [disturbance.kind === "abort" ? ["ABORTED"] : [], disposed ? ["DISPOSED"] : []].flat();
}

function close_answers(a: Answer, b: Answer, tolerance: number, what: string): void {
  same([...a.keys()].join(), [...b.keys()].join(), `outputs, ${what}`);
  for (const [name, tensor] of a) {
    const other = b.get(name) as Tensor;
    same(tensor.dims.join("×"), other.dims.join("×"), `${name}'s shape, ${what}`);
    close(tensor.data as Float32Array, other.data as Float32Array, tolerance, `${name}, ${what}`);
  }
}

function close(a: Float32Array, b: Float32Array, tolerance: number, what: string): void {
  const largest = b.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
  const difference = max_difference(a, b);
  if (!(difference <= tolerance * largest)) throw new Error(`${what}: differ by ${difference} of ${largest}`);
}

/** Each row of attention's probabilities sums to 1. */
function check_attentions(answer: Answer): void {
  for (const [name, { data, dims }] of answer) {
    if (!name.startsWith("attentions")) continue;
    const columns = dims.at(-1) as number;
    for (let row = 0; row < data.length; row += columns) {
      const sum = (data as Float32Array).subarray(row, row + columns).reduce((a, b) => a + b, 0);
      if (!(Math.abs(sum - 1) < 1e-5)) throw new Error(`${name}: a row sums to ${sum}`);
    }
  }
}

/** An image's answer doesn't depend on the others of its batch. */
async function check_one_image(
  model: Model,
  inputs: Inputs,
  answer: Answer,
  image: number,
  tolerance: number,
) {
  const take = <T extends Tensor>({ type, data, dims }: T) => {
    const size = data.length / (dims[0] as number);
    return new Tensor(type, data.slice(image * size, (image + 1) * size), [1, ...dims.slice(1)]);
  };
  const { bool_masked_pos, visible_patches } = inputs;
  const alone = await forward_outcome(model, {
    ...inputs,
    labels: undefined,
    pixel_values: take(inputs.pixel_values) as Tensor<"float32">,
    bool_masked_pos: bool_masked_pos && take(bool_masked_pos as Tensor),
    visible_patches:
      (visible_patches as Tensor | undefined)?.dims.length === 2
        ? take(visible_patches as Tensor)
        : visible_patches,
  });
  if ("code" in alone) throw new Error(`an image alone ended with ${alone.code}`);
  for (const [name, tensor] of alone.answer) {
    const expected = take(answer.get(name) as Tensor);
    close(
      tensor.data as Float32Array,
      expected.data as Float32Array,
      tolerance,
      `${name}, alone and in a batch`,
    );
  }
}

async function expect_disposed(model: Model): Promise<void> {
  const outcome = await forward_outcome(model, { pixel_values: new Tensor("float32", [0], [1, 1, 1, 1]) });
  same("code" in outcome && outcome.code, "DISPOSED", "a forward after dispose");
}

function same(actual: unknown, expected: unknown, what: string): void {
  if (actual !== expected) throw new Error(`${what}: ${String(actual)} instead of ${String(expected)}`);
}

/** The arguments that a case describes. */
function make_inputs(model: Model, forward: ForwardCase): Inputs {
  const { batch, other_size, visible, masked, mistake } = forward;
  const { config } = model;
  const random = make_random(forward.seed);
  const { height: patch_height, width: patch_width } = config.patch_grid;
  const grid = other_size
    ? { height: other_size.rows, width: other_size.columns }
    : { height: config.patches.height, width: config.patches.width };
  const patches = grid.height * grid.width;
  // Pixels beyond the last whole patch belong to none.
  const height = grid.height * patch_height + Math.min(other_size?.rest ?? 0, patch_height - 1);
  const width = grid.width * patch_width + Math.min(other_size?.rest ?? 0, patch_width - 1);
  const channels = config.num_channels + (mistake === "channels" ? 1 : 0);
  const pixels = Float32Array.from({ length: batch * channels * height * width }, () => 4 * random() - 2);
  if (mistake === "NaN") pixels[pixels.length - 1] = Number.NaN;
  const dims = mistake === "rank" ? [batch * channels, height, width] : [batch, channels, height, width];
  return {
    pixel_values: new Tensor("float32", pixels, dims),
    interpolate_pos_encoding: other_size !== undefined,
    visible_patches: mistake === "visible" ? [patches] : make_visible(visible, batch, patches, random),
    bool_masked_pos: model instanceof ViTMSNModel ? make_mask(masked, batch, patches, random) : undefined,
    output_hidden_states: forward.output_hidden_states,
    output_attentions: forward.output_attentions,
    ...(forward.labels && model instanceof ViTMSNForImageClassification
      ? { labels: make_labels(batch, config.num_labels, random) }
      : {}),
  };
}

function make_visible(
  visible: ForwardCase["visible"],
  batch: number,
  patches: number,
  random: () => number,
): Tensor | undefined {
  if (visible === undefined) return undefined;
  const kept = Math.max(1, Math.round((visible.percent * patches) / 100));
  const chosen = () => {
    const keys = Array.from({ length: patches }, (_, i) => [random(), i] as const);
    return keys
      .sort((a, b) => a[0] - b[0])
      .slice(0, kept)
      .map(([, i]) => i);
  };
  if (!visible.each) return new Tensor("int32", chosen(), [kept]);
  return new Tensor("int32", Array.from({ length: batch }, chosen).flat(), [batch, kept]);
}

function make_mask(
  percent: number | undefined,
  batch: number,
  patches: number,
  random: () => number,
): Tensor | undefined {
  if (percent === undefined) return undefined;
  const values = Uint8Array.from({ length: batch * patches }, () => (100 * random() < percent ? 1 : 0));
  return new Tensor("bool", values, [batch, patches]);
}

function make_labels(batch: number, num_labels: number, random: () => number): Tensor {
  if (num_labels === 1)
    return new Tensor("float32", Float32Array.from({ length: batch }, random), [batch, 1]);
  return new Tensor(
    "int32",
    Int32Array.from({ length: batch }, () => Math.floor(random() * num_labels)),
    [batch],
  );
}
