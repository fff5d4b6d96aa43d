import {
  type PretrainedOptions,
  Tensor,
  ViTMSNForImageClassification,
  ViTMSNModel,
  VitMsnError,
} from "vit-msn";
import { describe, expect, test } from "vitest";
import { read_safetensors_header } from "../../ts/loading/formats/safetensors.ts";
import { type TensorToWrite, write_safetensors } from "../../ts/loading/formats/write_safetensors.ts";
import { temporary_directory } from "../support/directories.ts";
import { fixture_files } from "../support/models.ts";

const SMALL = { hidden_size: 384, num_attention_heads: 6, intermediate_size: 1536 };
const QUERY = "vit.encoder.layer.1.attention.attention.query.weight";
const SCALE = `${QUERY}_scale`;

type Files = Record<string, Uint8Array>;

function waves(length: number, n = 1): Float32Array {
  return Float32Array.from({ length }, (_, i) => Math.sin(i * 1.7 + n - 1) + Math.sin(i * 0.013 * n));
}

function concatenated(parts: readonly Float32Array[]): Float32Array {
  return Float32Array.from(parts.flatMap((part) => [...part]));
}

const PIXELS = new Tensor("float32", waves(2 * 3 * 32 * 32), [2, 3, 32, 32]);

async function error_of(action: Promise<unknown>): Promise<VitMsnError> {
  const error = await action.then(
    () => expect.unreachable("expected an error"),
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(VitMsnError);
  return error as VitMsnError;
}

async function load(files: Files, options: PretrainedOptions = {}) {
  return ViTMSNForImageClassification.from_pretrained(files, options);
}

async function saved(model: ViTMSNForImageClassification): Promise<Files> {
  const directory = await temporary_directory();
  await model.save_pretrained(directory.target);
  const files = await directory.read_files();
  await directory.remove();
  return files;
}

async function logits_of(files: Files, options: PretrainedOptions): Promise<Float32Array> {
  const model = await load(files, options);
  const { logits } = await model.forward({ pixel_values: PIXELS });
  await model.dispose();
  return logits.data;
}

/** The fixture "tiny" as an int8 checkpoint. */
async function quantised_files(): Promise<Files> {
  const model = await load(await fixture_files("tiny"), { dtype: "int8" });
  const files = await saved(model);
  await model.dispose();
  return files;
}

interface Stored {
  dtype: string;
  dims: number[];
  bytes: Uint8Array;
}

async function read_weights(bytes: Uint8Array): Promise<Map<string, Stored>> {
  const file = {
    name: "model.safetensors",
    size: bytes.byteLength,
    read: async (offset: number, length: number) => bytes.slice(offset, offset + length),
    close: async () => {},
  };
  const entries = await read_safetensors_header(file);
  return new Map(
    entries.map(({ key, dtype, dims, start, end }) => [key, { dtype, dims, bytes: bytes.slice(start, end) }]),
  );
}

const NAMES: Record<string, TensorToWrite["dtype"]> = {
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  I8: "int8",
};

async function write_weights(tensors: Map<string, Stored>): Promise<Uint8Array> {
  const pieces: BlobPart[] = [];
  const list = [...tensors].map(([key, { dtype, dims, bytes }]) => ({
    key,
    dtype: NAMES[dtype] as TensorToWrite["dtype"],
    dims,
    byte_length: bytes.byteLength,
    bytes,
  }));
  for await (const piece of write_safetensors(list)) pieces.push(piece.slice());
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

/** The int8 checkpoint with its tensors changed. */
async function changed(change: (tensors: Map<string, Stored>) => void): Promise<Files> {
  const files = await quantised_files();
  const tensors = await read_weights(files["model.safetensors"] as Uint8Array);
  change(tensors);
  return { ...files, "model.safetensors": await write_weights(tensors) };
}

function floats(...values: number[]): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, v, i) => sum + v * (y[i] as number), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

describe("at the size of vit-msn-small", () => {
  const batch = 2;
  // What the tokens of the second have in common is small: attention's average over them is near 0.
  const both = [1, 2].map((n) => waves(3 * 224 * 224, n));
  const pixel_values = new Tensor("float32", concatenated(both), [batch, 3, 224, 224]);

  async function cls_and_memory(dtype: "float32" | "int8") {
    const model = await ViTMSNModel.from_config(SMALL, { dtype, seed: 5 });
    const held = model.memory().bytes;
    const { last_hidden_state } = await model.forward({ pixel_values });
    const tokens = last_hidden_state.dims[1] as number;
    const size = SMALL.hidden_size;
    const embeddings = Array.from({ length: batch }, (_, i) =>
      last_hidden_state.data.slice(i * tokens * size, i * tokens * size + size),
    );
    const { reserved } = model.memory();
    await model.dispose();
    return { embeddings, held, reserved };
  }

  test("CLS embeddings stay in place, in a quarter of the memory", async () => {
    const [full, small] = [await cls_and_memory("float32"), await cls_and_memory("int8")];
    for (const [i, embedding] of small.embeddings.entries()) {
      // Measured: 0.9995 and 0.9996; the weights' rounding alone gives 0.9998. Random layers amplify a rounding more than
      // trained ones do.
      const similarity = cosine(embedding, full.embeddings[i] as Float32Array);
      expect(similarity).toBeGreaterThan(0.9993);
    }
    // A quarter, and what stays float32: patch projection, positions, layer norms, biases, and the scales.
    expect(small.held / full.held).toBeLessThan(0.28);
    expect(small.reserved).toBeLessThan(64 * 2 ** 20);
  });
});

describe("an int8 checkpoint", () => {
  test("holds signed bytes and scales, as its config records", async () => {
    const files = await quantised_files();
    const config = JSON.parse(new TextDecoder().decode(files["config.json"]));
    expect(config).toMatchObject({
      dtype: "float32",
      quantization_config: { quant_method: "vit_msn_int8" },
    });
    const tensors = await read_weights(files["model.safetensors"] as Uint8Array);
    expect(tensors.get(QUERY)).toMatchObject({ dtype: "I8", dims: [48, 48] });
    expect(tensors.get(SCALE)).toMatchObject({ dtype: "F32", dims: [48] });
    const kinds = new Map([...tensors].map(([key, { dtype }]) => [key, dtype]));
    for (const key of ["embeddings.patch_embeddings.projection.weight", "layernorm.weight"])
      expect(kinds.get(`vit.${key}`)).toBe("F32");
    expect(kinds.get("classifier.weight")).toBe("F32");
    expect(kinds.get(QUERY.replace("weight", "bias"))).toBe("F32");
    // The largest magnitude of a row is 127 times its scale.
    const row = new Int8Array((tensors.get(QUERY) as Stored).bytes.slice(0, 48).buffer);
    expect(Math.max(...row.map(Math.abs))).toBe(127);
  });

  test("comes back bit for bit, whatever its keys are called", async () => {
    const files = await quantised_files();
    const model = await load(files, { dtype: "q8" });
    expect(model.dtype).toBe("int8");
    expect((await saved(model))["model.safetensors"]).toEqual(files["model.safetensors"]);
    await model.dispose();
    const bare = await changed((tensors) => {
      for (const [key, tensor] of [...tensors]) {
        tensors.delete(key);
        tensors.set(key.replace("vit.encoder.", "encoder."), tensor);
      }
    });
    expect(await logits_of(bare, { dtype: "int8" })).toEqual(await logits_of(files, { dtype: "int8" }));
  });

  test("loads as floats: each weight times its scale", async () => {
    const files = await quantised_files();
    const exact = await logits_of(await fixture_files("tiny"), {});
    const model = await load(files);
    expect(model.dtype).toBe("float32");
    const again = await saved(model);
    await model.dispose();
    expect(new TextDecoder().decode(again["config.json"])).not.toContain("quantization_config");
    const [stored, wide] = [
      await read_weights(files["model.safetensors"] as Uint8Array),
      await read_weights(again["model.safetensors"] as Uint8Array),
    ];
    const weights = new Int8Array((stored.get(QUERY) as Stored).bytes.buffer);
    const scales = new Float32Array((stored.get(SCALE) as Stored).bytes.buffer);
    expect(new Float32Array((wide.get(QUERY) as Stored).bytes.buffer)).toEqual(
      Float32Array.from(weights, (weight, i) => weight * (scales[Math.floor(i / 48)] as number)),
    );
    expect([...wide.keys()].filter((key) => key.endsWith("_scale"))).toEqual([]);
    for (const dtype of ["float32", "float16", "bfloat16"] as const) {
      const logits = await logits_of(files, { dtype });
      expect(Math.max(...logits.map((value, i) => Math.abs(value - (exact[i] as number))))).toBeLessThan(0.1);
    }
  });

  const bytes_of = (tensors: Map<string, Stored>, key: string) => (tensors.get(key) as Stored).bytes;
  const damages: [string, (tensors: Map<string, Stored>) => void, RegExp][] = [
    ["no scale", (t) => t.delete(SCALE), /needs its scales as ".*_scale", float32 \[48\], but there is none/],
    [
      "a scale of another shape",
      (t) => t.set(SCALE, { dtype: "F32", dims: [1], bytes: floats(1) }),
      /float32 \[48\], but it is float32 \[1\]/,
    ],
    [
      "a scale of another type",
      (t) => t.set(SCALE, { dtype: "F16", dims: [48], bytes: new Uint8Array(96) }),
      /but it is float16 \[48\]/,
    ],
    ...[Number.NaN, 0, -1, Number.POSITIVE_INFINITY].map(
      (value): [string, (tensors: Map<string, Stored>) => void, RegExp] => [
        `a scale of ${value}`,
        (t) => bytes_of(t, SCALE).set(floats(value), 4 * 7),
        new RegExp(`element 7 is ${value}, but scales are finite and above 0`),
      ],
    ),
  ];

  test.each(damages)("with %s is refused by its scales' key", async (_, damage, words) => {
    const error = await error_of(load(await changed(damage), { dtype: "int8" }));
    expect(error.code).toBe("INVALID_CHECKPOINT");
    expect(error.message).toMatch(words);
    expect(error.message).toContain(SCALE);
    expect(error.details?.key).toBe(SCALE);
  });

  test("with int8 where no linear layer's weight is, or of another shape, is refused", async () => {
    const norm = "vit.layernorm.weight";
    const files = await changed((t) => t.set(norm, { dtype: "I8", dims: [48], bytes: new Uint8Array(48) }));
    const error = await error_of(load(files));
    expect(error.code).toBe("INVALID_CHECKPOINT");
    expect(error.message).toContain(norm);
    const misshapen = await changed((t) => {
      t.set(QUERY, { dtype: "I8", dims: [24, 48], bytes: new Uint8Array(24 * 48) });
      t.set(SCALE, { dtype: "F32", dims: [24], bytes: floats(...Array(24).fill(1)) });
    });
    const mismatch = await error_of(load(misshapen));
    expect(mismatch.code).toBe("CHECKPOINT_MISMATCH");
    expect(mismatch.message).toContain(`${QUERY} is [24, 48], expected [48, 48]`);
  });
});
