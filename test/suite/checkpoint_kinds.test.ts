import { pipeline, Tensor, ViTMSNForImageClassification, ViTMSNModel } from "vit-msn";
import { expect, test } from "vitest";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { open_source } from "../../ts/loading/source.ts";
import {
  as_float64,
  type RawTensor,
  raw_tensors,
  safetensors_of,
  values_of,
} from "../support/checkpoints.ts";
import { fixture_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { with_warnings } from "../support/warnings.ts";

const files = await fixture_files("tiny");
const tensors = raw_tensors(files["model.safetensors"] as Uint8Array);
const pixels = Float32Array.from({ length: 3 * 32 * 32 }, (_, i) => Math.sin(i));

/** The model's files with other weights. */
const with_weights = (weights: ReadonlyMap<string, RawTensor>) => ({
  ...files,
  "model.safetensors": safetensors_of(weights),
});
const changed = (change: (key: string, tensor: RawTensor) => [string, RawTensor] | undefined) =>
  with_weights(new Map([...tensors].map((entry) => change(...entry)).filter((entry) => entry !== undefined)));

async function logits_of(source: Record<string, Uint8Array>) {
  const { result, warnings } = await with_warnings(async () => {
    const model = await ViTMSNForImageClassification.from_pretrained(source);
    const { logits } = await model.forward({ pixel_values: new Tensor("float32", pixels, [1, 3, 32, 32]) });
    await model.dispose();
    return [...logits.data];
  });
  return { logits: result, warnings };
}
const expected = await logits_of(files);
const refusal = (source: Record<string, Uint8Array>) =>
  error_of(ViTMSNForImageClassification.from_pretrained(source));

test("float64, in whole or of the head only, gives what float32 gives", async () => {
  expect(await logits_of(changed((key, tensor) => [key, as_float64(tensor)]))).toEqual(expected);
  const head = changed((key, tensor) => [key, key.startsWith("classifier") ? as_float64(tensor) : tensor]);
  expect(await logits_of(head)).toEqual(expected);
});

/** Every pattern of eight bits, as torch converts them to float32. */
const FLOAT8: Record<string, (bits: number) => number> = {
  F8_E4M3: (bits) => ((bits & 127) === 127 ? Number.NaN : float8(bits, 3, 7)),
  F8_E4M3FNUZ: (bits) => (bits === 128 ? Number.NaN : float8(bits, 3, 8)),
  F8_E5M2: (bits) => {
    if ((bits & 127) > 124) return Number.NaN;
    return (bits & 127) === 124 ? (bits > 127 ? -1 : 1) * Number.POSITIVE_INFINITY : float8(bits, 2, 15);
  },
  F8_E5M2FNUZ: (bits) => (bits === 128 ? Number.NaN : float8(bits, 2, 16)),
};
function float8(bits: number, fraction_bits: number, bias: number): number {
  const exponent = (bits >> fraction_bits) & (2 ** (7 - fraction_bits) - 1);
  const fraction = (bits & (2 ** fraction_bits - 1)) / 2 ** fraction_bits;
  const size = exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias);
  return bits & 128 ? -size : size;
}

test.each(Object.keys(FLOAT8))("%s is read exactly, any part of it", async (dtype) => {
  const bytes = Uint8Array.from({ length: 256 }, (_, bits) => bits);
  const file = safetensors_of(new Map([["a", { dtype, dims: [256], bytes }]]));
  const tensor = (await open_checkpoint(await open_source({ "model.safetensors": file }))).tensors.get("a");
  expect(tensor?.dtype).toBe("float32");
  const whole = (await tensor?.read(0, 1024)) as Uint8Array;
  expect([...new Float32Array(whole.slice().buffer)]).toEqual(
    [...bytes].map(FLOAT8[dtype] as (bits: number) => number),
  );
  expect(await tensor?.read(13, 30)).toEqual(whole.slice(13, 43));
});

test("the largest and smallest of float8", () => {
  expect(FLOAT8.F8_E4M3?.(0x7e)).toBe(448);
  expect(FLOAT8.F8_E4M3?.(0x01)).toBe(2 ** -9);
  expect(FLOAT8.F8_E5M2?.(0x7b)).toBe(57344);
  expect(FLOAT8.F8_E5M2?.(0x81)).toBe(-(2 ** -16));
});

test("a model in float8 runs", async () => {
  const zeros = (tensor: RawTensor) => ({
    ...tensor,
    dtype: "F8_E4M3",
    bytes: new Uint8Array(values_of(tensor).length),
  });
  const { logits, warnings } = await logits_of(
    changed((key, tensor) => [key, key === "classifier.weight" ? zeros(tensor) : tensor]),
  );
  const bias = values_of(tensors.get("classifier.bias") as RawTensor);
  expect(logits).toEqual([...bias]);
  expect(warnings).toEqual([]);
});

test.each(["I64", "I32", "U8", "BOOL", "C64", "F8_E8M0"])(
  "%s is refused by key and dtype, never initialised instead",
  async (dtype) => {
    const width = { I64: 8, I32: 4, C64: 8 }[dtype] ?? 1;
    for (const key of ["classifier.weight", "classifier.bias", "vit.layernorm.bias"]) {
      const bad = changed((one, tensor) => [
        one,
        one === key ? { ...tensor, dtype, bytes: new Uint8Array(values_of(tensor).length * width) } : tensor,
      ]);
      const error = await refusal(bad);
      expect(error.code).toBe("CHECKPOINT_MISMATCH");
      expect(error.message).toContain(`${key} is ${dtype}`);
      expect(error.message).not.toContain("missing keys");
    }
  },
);

test("buffers of other dtypes that no model needs don't matter", async () => {
  const ids: RawTensor = { dtype: "I64", dims: [1], bytes: new Uint8Array(8) };
  expect(await logits_of(with_weights(new Map([...tensors, ["vit.embeddings.position_ids", ids]])))).toEqual(
    expected,
  );
});

test("a classifier without a bias gets one of zeros, with a warning; one without a weight is refused", async () => {
  const bias = values_of(tensors.get("classifier.bias") as RawTensor);
  const { logits, warnings } = await logits_of(
    changed((key, tensor) => (key === "classifier.bias" ? undefined : [key, tensor])),
  );
  for (const [i, logit] of logits.entries()) {
    expect(logit).toBeCloseTo((expected.logits[i] as number) - (bias[i] as number), 5);
  }
  expect(warnings).toHaveLength(1);
  expect(warnings[0]).toMatch(/classifier\.bias .*zeros/);
  const error = await refusal(
    changed((key, tensor) => (key === "classifier.weight" ? undefined : [key, tensor])),
  );
  expect(error.message).toContain("missing keys: classifier.weight");
});

test("a head by another name is reported where a new one is initialised", async () => {
  const { warnings } = await logits_of(
    changed((key, tensor) => [key.replace("classifier.", "classifier.1."), tensor]),
  );
  expect(warnings.join()).toMatch(/newly initialised: classifier\.weight/);
  expect(warnings.join()).toMatch(/doesn't use: .*classifier\.1\.weight/);
});

test.each([
  "_orig_mod.",
  "model.",
  "module.",
  "module._orig_mod.",
  "_orig_mod.module.",
  "model._orig_mod.",
  "module.model.",
  "_fsdp_wrapped_module.",
])("prefixes that frameworks add are removed: %s", async (prefix) => {
  expect(await logits_of(changed((key, tensor) => [prefix + key, tensor]))).toEqual(expected);
});

test("wrappers inside, and a wrapped copy next to the model's weights", async () => {
  const inside = changed((key, tensor) => [
    key.replace("vit.", "vit._orig_mod.").replace(/layer\.(\d)\./, "layer.$1._checkpoint_wrapped_module."),
    tensor,
  ]);
  expect(await logits_of(inside)).toEqual(expected);
  const average = [...tensors].map(([key, tensor]): [string, RawTensor] => [
    `module.${key}`,
    { ...tensor, bytes: new Uint8Array(tensor.bytes.byteLength) },
  ]);
  const { logits, warnings } = await logits_of(with_weights(new Map([...average, ...tensors])));
  expect(logits).toEqual(expected.logits);
  expect(warnings[0]).toContain("module.vit.embeddings.cls_token");
});

test("any other prefix is named", async () => {
  const error = await refusal(changed((key, tensor) => [`net.backbone.${key}`, tensor]));
  expect(error.code).toBe("CHECKPOINT_MISMATCH");
  expect(error.message).toContain(`${tensors.size} keys begin with "net.backbone."`);
});

test("an adapter is named, in its own folder and next to the weights", async () => {
  const adapter = {
    "adapter_config.json": new Uint8Array([0x7b, 0x7d]),
    "adapter_model.safetensors": new Uint8Array(8),
  };
  for (const source of [adapter, { ...adapter, "config.json": files["config.json"] as Uint8Array }]) {
    for (const error of [await error_of(ViTMSNModel.from_pretrained(source)), await refusal(source)]) {
      expect(error.code).toBe("NOT_FOUND");
      expect(error.message).toContain("adapter_config.json: a LoRA or other PEFT adapter");
    }
  }
  const unmerged = changed((key, tensor) => [
    `base_model.model.${key.replace(".query.", ".query.base_layer.")}`,
    tensor,
  ]);
  expect((await refusal(unmerged)).message).toContain("LoRA adapter");
});

test("the error of a path without a model names config.json, without an image processor that file", async () => {
  const error = await error_of(pipeline("image-classification", {}));
  expect(error.code).toBe("NOT_FOUND");
  expect(error.message).toContain("has no config.json");
  const { "preprocessor_config.json": _, ...unprepared } = files;
  expect((await error_of(pipeline("image-classification", unprepared))).message).toContain(
    "has no preprocessor_config.json",
  );
});
