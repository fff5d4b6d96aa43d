import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Tensor, ViTMSNForImageClassification, ViTMSNModel } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  CONFIGS,
  config_json,
  LABELS,
  make_checkpoint,
  make_pixel_values,
  type Size,
} from "../real_size/weights.ts";
import { skipped } from "../support/skips.ts";
import { max_difference, read_tensors } from "../support/tensors.ts";

// ViT-MSN at the released sizes. Weights come from a hash, so that CI needs neither Python nor files of 400 MB;
// test/real_size/make_expected.py says what transformers computes with them.

const TOLERANCE = 1e-3;
/** Resident bytes for a byte of weights. */
const MEMORY_FACTOR = 1.6;
/** The hidden states and tokens that make_expected.py keeps. */
const [LAYERS, TOKENS] = [
  [0, 6, 12],
  [0, 100, 196],
];

const run = promisify(execFile);
const root = fileURLToPath(new URL("../../", import.meta.url));
const child = join(root, "test/real_size/load_from_disk.mjs");
const megabytes = (bytes: number) => `${Math.round(bytes / 1e6)} MB`;

describe.each(Object.keys(CONFIGS) as Size[])("vit-msn-%s", (size) => {
  let weights: Uint8Array<ArrayBuffer>;
  let files: Record<string, Uint8Array>;

  beforeAll(() => {
    weights = make_checkpoint(size);
    files = { "config.json": new TextEncoder().encode(config_json(size)), "model.safetensors": weights };
  });

  afterAll(() => {
    weights = new Uint8Array();
    files = {};
  });

  test("gives the reference's logits and hidden states", async () => {
    const expected = await read_tensors(`test/real_size/${size}.safetensors`);
    const pixel_values = new Tensor("float32", make_pixel_values(), [2, 3, 224, 224]);
    const start = performance.now();
    const model = await ViTMSNForImageClassification.from_pretrained(files);
    const seconds = (performance.now() - start) / 1e3;
    console.log(
      `vit-msn-${size}: session of ${megabytes(weights.length)} in memory in ${seconds.toFixed(2)} s`,
    );

    const both = await model.forward({ pixel_values, output_hidden_states: true });
    const first = new Tensor("float32", pixel_values.data.slice(0, 3 * 224 * 224), [1, 3, 224, 224]);
    const one = await model.forward({ pixel_values: first });
    const logits = expected.get("logits")?.data as Float32Array;
    expect(max_difference(both.logits.data, logits)).toBeLessThan(TOLERANCE);
    expect(max_difference(one.logits.data, logits.subarray(0, LABELS))).toBeLessThan(TOLERANCE);
    const rows = (both.hidden_states as Tensor<"float32">[])
      .filter((_, i) => LAYERS.includes(i))
      .flatMap(recorded_rows);
    expect(max_difference(rows, expected.get("hidden_states")?.data as Float32Array)).toBeLessThan(TOLERANCE);
    expect(model.memory().reserved).toBeLessThan(MEMORY_FACTOR * weights.length);
    await model.dispose();
  });

  test("gives the reference's embedding", async () => {
    const expected = await read_tensors(`test/real_size/${size}.safetensors`);
    const model = await ViTMSNModel.from_pretrained(files);
    const pixel_values = new Tensor("float32", make_pixel_values(), [2, 3, 224, 224]);
    const cls = await model.get_image_features({ pixel_values });
    expect(max_difference(cls.data, expected.get("cls")?.data as Float32Array)).toBeLessThan(TOLERANCE);
    await model.dispose();
  });

  test("loads from disk in little more memory than its weights take", async () => {
    const folder = await mkdtemp(join(tmpdir(), "vit-msn-real-size-"));
    try {
      for (const [name, bytes] of Object.entries(files)) await writeFile(join(folder, name), bytes);
      const { stdout } = await run(process.execPath, [child, folder]);
      const { before, loaded, peak, reserved_after } = JSON.parse(stdout) as MemoryReport;
      console.log(
        `vit-msn-${size}: ${megabytes(weights.length)} of weights; resident ${megabytes(before)} before, ` +
          `${megabytes(loaded)} loaded, ${megabytes(peak)} at most; WebAssembly memory ${megabytes(reserved_after)}`,
      );
      expect(peak - before).toBeLessThan(MEMORY_FACTOR * weights.length);
      expect(reserved_after).toBeLessThan(MEMORY_FACTOR * weights.length);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

/** What load_from_disk.mjs prints: bytes. */
interface MemoryReport {
  before: number;
  loaded: number;
  peak: number;
  reserved_after: number;
}

/** Rows TOKENS of a hidden state [2, N, D]. */
function recorded_rows({ data, dims }: Tensor<"float32">): number[] {
  const [batch, tokens, width] = dims as [number, number, number];
  const rows = Array.from({ length: batch }, (_, b) =>
    TOKENS.map((token) => (b * tokens + token) * width),
  ).flat();
  return rows.flatMap((start) => [...data.subarray(start, start + width)]);
}

/** Opt-in: models that `test/reference/make_fixtures.py FOLDER --size small` and `--size base` made. */
const real_models = process.env.VIT_MSN_REAL_MODELS;

/**
 * Half-width weights differ from the float32 reference by their rounding alone. Measured at most: float16 2.5e-3,
 * bfloat16 2.0e-2 (the ratio of their roundings); the bounds are twice that.
 */
const TOLERANCES = { float32: TOLERANCE, float16: 5e-3, bfloat16: 4e-2 } as const;

describe
  .skipIf(skipped(real_models === undefined, "VIT_MSN_REAL_MODELS names no folder"))
  .each(Object.keys(CONFIGS) as Size[])("the reference's %s model", (size) => {
  const folder = join(real_models ?? "", size);

  test.each(Object.keys(TOLERANCES) as (keyof typeof TOLERANCES)[])(
    "gives its logits with %s weights",
    async (dtype) => {
      const expected = await read_tensors(relative(root, join(folder, "expected.safetensors")));
      const model = await ViTMSNForImageClassification.from_pretrained(folder, {
        dtype,
        local_files_only: true,
      });
      const { data, dims } = expected.get("in.pixel_values") as { data: Float32Array; dims: number[] };
      const { logits } = await model.forward({ pixel_values: new Tensor("float32", data, dims) });
      const difference = max_difference(logits.data, expected.get("out.logits")?.data as Float32Array);
      console.log(`${size}, ${dtype}: logits differ by ${difference.toExponential(1)} at most`);
      expect(difference).toBeLessThan(TOLERANCES[dtype]);
      await model.dispose();
    },
  );

  test("starts once its bytes are in memory", async () => {
    const names = ["config.json", "model.safetensors"];
    const entries = names.map(async (name) => [name, await readFile(join(folder, name))] as const);
    const start_files = Object.fromEntries(await Promise.all(entries));
    const start = performance.now();
    const model = await ViTMSNForImageClassification.from_pretrained(start_files);
    const seconds = (performance.now() - start) / 1e3;
    console.log(`${size}: session in ${seconds.toFixed(2)} s`);
    await model.dispose();
  });
});
