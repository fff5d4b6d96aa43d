import {
  type ForwardInputs,
  type ModelOutput,
  type PretrainedOptions,
  Tensor,
  ViTMSNForImageClassification,
  ViTMSNModel,
} from "vit-msn";
import { beforeAll, describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { fixture_files } from "../support/models.ts";
import { type FixtureTensor, max_difference, read_tensors } from "../support/tensors.ts";

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

const FLOAT32_TOLERANCE = 1e-4;
/**
 * Half-width weights against the float32 reference: the arithmetic stays float32, so all that differs is each weight's
 * rounding, by at most 2⁻¹² of it in float16 and 2⁻⁹ in bfloat16. The largest difference measured over all outputs of
 * these cases is 2.7e-3 and 2.0e-2 (their ratio is that of the roundings), and the bounds are twice that.
 */
const HALF_TOLERANCES = { float16: 5.4e-3, bfloat16: 4e-2 } as const;

/**
 * int8 against the float32 reference: a weight is rounded by at most 1/254 of its row's largest, so small ones lose more than
 * in bfloat16; inputs have 13 bits. The largest difference measured over all outputs of these cases is 4.0e-2, and the bound
 * is twice that.
 */
const INT8_TOLERANCE = 8e-2;
const TOLERANCES = { ...HALF_TOLERANCES, int8: INT8_TOLERANCE } as const;

const levels = (names: readonly string[], counts: readonly number[], worker = false) =>
  names.flatMap((level) => counts.map((num_threads) => ({ level, num_threads, worker })));
/** Pages are served without what threads need: theirs are in test/node/threads_page.test.ts. */
const THREADED = levels(["simd128+threads", "relaxed+threads"], [1, 2, 3]);
/** Every engine that this runtime can run. */
const ENGINES = [
  ...levels(["simd128", "relaxed"], [1]),
  ...levels(["relaxed"], [1], true),
  ...(typeof document === "undefined" ? [...THREADED, ...levels(["relaxed+threads"], [2], true)] : []),
];

async function load(name: string, options: PretrainedOptions) {
  const files = await fixture_files(name);
  if (BACKBONES.includes(name)) return ViTMSNModel.from_pretrained(files, options);
  return ViTMSNForImageClassification.from_pretrained(files, options);
}

type Tensors = Map<string, FixtureTensor>;

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

/** Compares everything that the reference gave, and that nothing else came. */
function expect_same(output: ModelOutput, expected: Tensors, tolerance: number): void {
  const found = new Map<string, Tensor>();
  for (const [name, value] of Object.entries(output)) {
    if (Array.isArray(value))
      for (const [i, tensor] of value.entries()) found.set(`out.${name}.${i}`, tensor);
    else found.set(`out.${name}`, value as Tensor);
  }
  const wanted = [...expected.keys()].filter((name) => name.startsWith("out."));
  expect([...found.keys()].sort()).toEqual(wanted.sort());
  for (const name of wanted) {
    const { dims, data } = expected.get(name) as FixtureTensor;
    const tensor = found.get(name) as Tensor<"float32">;
    expect(tensor.dims, name).toEqual(dims);
    expect(max_difference(tensor.data, data as Float32Array), name).toBeLessThanOrEqual(tolerance);
  }
}

describe.each(ENGINES)("$level, $num_threads threads, worker: $worker", ({ level, num_threads, worker }) => {
  const engine: PretrainedOptions = { num_threads, worker };
  beforeAll(async () => {
    const file = `dist/vit_msn_${level.replace("+", "_")}.wasm`;
    engine.wasm = await WebAssembly.compile((await read_file(file)) as Uint8Array<ArrayBuffer>);
  });

  describe.each(["sdpa", "eager"] as const)("%s gives the reference's outputs", (attn_implementation) => {
    test.each([...CLASSIFIERS, ...BACKBONES])("%s", async (name) => {
      const expected = await read_tensors(`test/fixtures/${name}/expected.safetensors`);
      const model = await load(name, { ...engine, attn_implementation });
      expect(model.engine_info).toMatchObject({ level, threads: num_threads, worker });
      const inputs = inputs_of(name, expected);
      expect_same(await model.forward(inputs), expected, FLOAT32_TOLERANCE);
      // Asking for attentions computes them eagerly; the path that streams is compared without them.
      const { logits, last_hidden_state } = (await model.forward({
        ...inputs,
        output_attentions: false,
        output_hidden_states: false,
      })) as { logits?: Tensor<"float32">; last_hidden_state?: Tensor<"float32"> };
      const main = expected.get("out.logits") ?? expected.get("out.last_hidden_state");
      const found = (logits ?? last_hidden_state)?.data as Float32Array;
      expect(max_difference(found, main?.data as Float32Array)).toBeLessThanOrEqual(FLOAT32_TOLERANCE);
      await model.dispose();
    });
  });

  describe.each(["float16", "bfloat16", "int8"] as const)("%s weights stay near the reference", (dtype) => {
    test.each([...CLASSIFIERS, ...BACKBONES])("%s", async (name) => {
      const expected = await read_tensors(`test/fixtures/${name}/expected.safetensors`);
      const model = await load(name, { ...engine, dtype });
      expect(model.dtype).toBe(dtype);
      expect_same(await model.forward(inputs_of(name, expected)), expected, TOLERANCES[dtype]);
      await model.dispose();
    });
  });
});
