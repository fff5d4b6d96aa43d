import {
  type AttnImplementation,
  type EngineInfo,
  type ForwardInputs,
  type ModelOutput,
  type PretrainedOptions,
  Tensor,
  ViTMSNForImageClassification,
  ViTMSNModel,
} from "vit-msn";
import { fixture_files } from "./models.ts";
import { type FixtureTensor, max_difference, read_tensors } from "./tensors.ts";

/** Every case of the reference's fixtures; how each was made is in test/reference/make_fixtures.py. */
const CLASSIFIERS = [
  "tiny",
  "tiny_rect",
  "tiny_nobias",
  "tiny_relu",
  "tiny_silu",
  "tiny_gelu_new",
  "tiny_quick_gelu",
  "odd_heads",
  "interpolate",
  "regression",
  "multi_label",
  "keys_v5_names",
  "keys_mixed_prefix",
  "pytorch_bin",
];
const BACKBONES = ["backbone", "masked"];
export const FIXTURES: readonly string[] = [...CLASSIFIERS, ...BACKBONES];

const FLOAT32_TOLERANCE = 1e-4;
/**
 * Half-width weights against the float32 reference: where the arithmetic stays float32, all that differs is each weight's
 * rounding, by at most 2⁻¹² of it in float16 and 2⁻⁹ in bfloat16. The largest difference measured over all outputs of
 * these cases is 2.7e-3 and 2.0e-2 (their ratio is that of the roundings), and the bounds are twice that. GPUs with
 * shader-f16 round inputs to float16, too: 4.2e-3.
 */
const HALF_TOLERANCES = { float16: 5.4e-3, bfloat16: 4e-2 } as const;

/**
 * int8 against the float32 reference: a weight is rounded by at most 1/254 of its row's largest, so small ones lose more than
 * in bfloat16; inputs have 13 bits. The largest difference measured over all outputs of these cases is 4.0e-2, and the bound
 * is twice that. Where GPUs multiply bytes, inputs have 8 bits for every 32 values: 7.0e-2.
 */
const INT8_TOLERANCE = 8e-2;
/** The largest difference to the reference that an output may have. */
export const TOLERANCES = { float32: FLOAT32_TOLERANCE, ...HALF_TOLERANCES, int8: INT8_TOLERANCE } as const;

/** A dtype and how attention is computed. */
export interface Way {
  dtype: keyof typeof TOLERANCES;
  attn_implementation: AttnImplementation;
}

/** What every case is run with on every engine, in every runtime. */
export const WAYS: readonly Way[] = [
  { dtype: "float32", attn_implementation: "sdpa" },
  { dtype: "float32", attn_implementation: "eager" },
  { dtype: "float16", attn_implementation: "sdpa" },
  { dtype: "bfloat16", attn_implementation: "sdpa" },
  { dtype: "int8", attn_implementation: "sdpa" },
];

/** The result of a case, as plain data that another runtime can print. */
export interface CaseOutcome {
  dtype: string;
  info: EngineInfo;
  /** How far each output is from the reference's. */
  differences: Record<string, number>;
}

/** Runs a case, asking for all outputs and for the main one alone. */
export async function run_case(name: string, way: Way, engine: PretrainedOptions): Promise<CaseOutcome> {
  const expected = await read_tensors(`test/fixtures/${name}/expected.safetensors`);
  const model = await load(name, { ...engine, ...way });
  try {
    const inputs = inputs_of(name, expected);
    const found = differences(await model.forward(inputs), expected);
    // Asking for attentions computes them eagerly; the path that streams is compared without them.
    const plain = { ...inputs, output_attentions: false, output_hidden_states: false };
    const main = main_output(await model.forward(plain), expected);
    found.set("the main output, asked for alone", max_difference(...main));
    return { dtype: model.dtype, info: model.engine_info, differences: Object.fromEntries(found) };
  } finally {
    await model.dispose();
  }
}

/** The model of a case. */
async function load(name: string, options: PretrainedOptions) {
  const files = await fixture_files(name);
  if (BACKBONES.includes(name)) return ViTMSNModel.from_pretrained(files, options);
  return ViTMSNForImageClassification.from_pretrained(files, options);
}

/** The tensors of a fixture by name. */
type Tensors = Map<string, FixtureTensor>;

/** What the case was computed from, asking for everything. */
function inputs_of(name: string, expected: Tensors): ForwardInputs & { labels?: Tensor } {
  const labels = expected.get("in.labels");
  const mask = expected.get("in.bool_masked_pos");
  return {
    pixel_values: as_tensor(expected.get("in.pixel_values") as FixtureTensor),
    ...(labels && { labels: as_tensor(labels) }),
    ...(mask && { bool_masked_pos: as_tensor(mask) }),
    interpolate_pos_encoding: name === "interpolate",
    output_hidden_states: true,
    output_attentions: true,
  };
}

function as_tensor({ dtype, dims, data }: FixtureTensor): Tensor {
  if (dtype === "I64") return new Tensor("int64", data as BigInt64Array, dims);
  if (dtype === "U8") return new Tensor("uint8", data as Uint8Array, dims);
  return new Tensor("float32", data as Float32Array, dims);
}

/** How far each output is from the reference's; throws unless exactly the reference's outputs came, in their shapes. */
function differences(output: ModelOutput, expected: Tensors): Map<string, number> {
  const found = new Map<string, Tensor>();
  for (const [name, value] of Object.entries(output)) {
    if (Array.isArray(value))
      for (const [i, tensor] of value.entries()) found.set(`out.${name}.${i}`, tensor);
    else found.set(`out.${name}`, value as Tensor);
  }
  const wanted = [...expected].filter(([name]) => name.startsWith("out."));
  const names = (entries: Iterable<[string, unknown]>) =>
    [...entries]
      .map(([name]) => name)
      .sort()
      .join();
  if (names(found) !== names(wanted)) throw new Error(`Outputs ${names(found)} instead of ${names(wanted)}.`);
  return new Map(
    wanted.map(([name, { dims, data }]) => {
      const tensor = found.get(name) as Tensor<"float32">;
      if (tensor.dims.join() !== dims.join())
        throw new Error(`${name} is [${tensor.dims}] instead of [${dims}].`);
      return [name, max_difference(tensor.data, data as Float32Array)];
    }),
  );
}

/** The values of the main output, and the reference's. */
function main_output(output: ModelOutput, expected: Tensors): [Float32Array, Float32Array] {
  const { logits, last_hidden_state } = output as Record<string, Tensor<"float32"> | undefined>;
  const main = expected.get("out.logits") ?? expected.get("out.last_hidden_state");
  return [(logits ?? last_hidden_state)?.data as Float32Array, main?.data as Float32Array];
}
