import { pipeline, RawImage, type Tensor } from "vit-msn";
import { expect, test } from "vitest";
import { model_files } from "../support/models.ts";
import { skipped } from "../support/skips.ts";
import { max_difference, read_tensors } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

const IMAGES = 1000;
const PIXELS = 28 * 28;
const LABELS = 10;
const WIDTH = 128;

/** Real held-out images, their labels, and what the reference makes of them (models/fashion/README.md). */
async function read_test_set() {
  const tensors = await read_tensors("models/fashion/test1000.safetensors");
  const pixels = tensors.get("pictures")?.data as Uint8Array;
  const images = Array.from(
    { length: IMAGES },
    (_, i) => new RawImage(pixels.slice(i * PIXELS, (i + 1) * PIXELS), 28, 28, 1),
  );
  return {
    images,
    labels: tensors.get("labels")?.data as Int32Array,
    logits: tensors.get("out.logits")?.data as Float32Array,
    cls_before_norm: tensors.get("out.cls_before_norm")?.data as Float32Array,
  };
}

function argmax(values: Float32Array): number {
  return values.reduce((best, value, i) => (value > (values[best] as number) ? i : best), 0);
}

test("a model trained by the reference classifies 1,000 real images as the reference does", async () => {
  const { images, labels, logits, cls_before_norm } = await read_test_set();
  const { model, processor } = await pipeline("image-classification", await model_files("models/fashion"));
  let correct = 0;
  const batch = 50;
  for (let start = 0; start < IMAGES; start += batch) {
    const { pixel_values } = await processor(images.slice(start, start + batch));
    const output = await model.forward({ pixel_values, output_hidden_states: true });
    const last = output.hidden_states?.at(-1) as Tensor<"float32">;
    const tokens = last.dims[1] as number;
    for (let i = 0; i < batch; i++) {
      const found = output.logits.data.subarray(i * LABELS, (i + 1) * LABELS);
      const expected = logits.subarray((start + i) * LABELS, (start + i + 1) * LABELS);
      expect(argmax(found), `top-1 of image ${start + i}`).toBe(argmax(expected));
      expect(max_difference(found, expected), `logits of image ${start + i}`).toBeLessThan(1e-4);
      const cls = last.data.subarray(i * tokens * WIDTH, i * tokens * WIDTH + WIDTH);
      const expected_cls = cls_before_norm.subarray((start + i) * WIDTH, (start + i + 1) * WIDTH);
      expect(max_difference(cls, expected_cls), `CLS of image ${start + i}`).toBeLessThan(1e-4);
      if (argmax(found) === labels[start + i]) correct++;
    }
  }
  console.log(
    `fashion: accuracy ${(correct / IMAGES).toFixed(3)} on ${IMAGES} held-out images, top-1 as the reference on all`,
  );
  await model.dispose();
});

/** What transformers makes of the same images by the model that the package carries (models/fashion_msn/README.md). */
const BUNDLED = "models/fashion_msn/classifier";
const BUNDLED_LOGITS = "models/fashion_msn/logits1000.safetensors";

test.each([
  { dtype: "float32", tolerance: 1e-4, max_changes: 0 },
  // Of float32's own logits: in int8 the weights' rounding.
  { dtype: "int8", tolerance: 0.5, max_changes: 10 },
] as const)(
  "the bundled model is right about more of them, in $dtype",
  async ({ dtype, tolerance, max_changes }) => {
    const { images, labels, logits: earlier } = await read_test_set();
    const expected = (await read_tensors(BUNDLED_LOGITS)).get("out.logits")?.data as Float32Array;
    const classify = await pipeline("image-classification", await model_files(BUNDLED), { dtype });
    const { pixel_values } = await classify.processor(images);
    const { logits } = await classify.model.forward({ pixel_values });
    expect(max_difference(logits.data, expected)).toBeLessThan(tolerance);
    const top1 = (values: Float32Array, i: number) => argmax(values.subarray(i * LABELS, (i + 1) * LABELS));
    const count = (is_so: (i: number) => boolean) => images.filter((_, i) => is_so(i)).length;
    expect(count((i) => top1(logits.data, i) !== top1(expected, i))).toBeLessThanOrEqual(max_changes);
    const right = count((i) => top1(logits.data, i) === labels[i]);
    console.log(`fashion: the bundled model in ${dtype} is right about ${right} of ${IMAGES}`);
    expect(right).toBeGreaterThan(count((i) => top1(earlier, i) === labels[i]));
    await classify.dispose();
  },
);

/** Top-1 changes against the float32 reference that rounding may cause. */
const MAX_CHANGES = 3;

test(`int8 changes the top-1 of at most ${MAX_CHANGES} of 1,000 images`, async () => {
  const { images, logits } = await read_test_set();
  const files = await model_files("models/fashion");
  const { model, processor } = await pipeline("image-classification", files, { dtype: "int8" });
  let changes = 0;
  const batch = 50;
  for (let start = 0; start < IMAGES; start += batch) {
    const { pixel_values } = await processor(images.slice(start, start + batch));
    const found = (await model.forward({ pixel_values })).logits.data;
    for (let i = 0; i < batch; i++) {
      const expected = logits.subarray((start + i) * LABELS, (start + i + 1) * LABELS);
      if (argmax(found.subarray(i * LABELS, (i + 1) * LABELS)) !== argmax(expected)) changes++;
    }
  }
  console.log(`fashion: int8 changes the top-1 of ${changes} images of ${IMAGES}`);
  expect(changes).toBeLessThanOrEqual(MAX_CHANGES);
  await model.dispose();
});

const in_node = typeof document === "undefined";
/** Software WebGPU is slow: all of them only where VIT_MSN_ALL_IMAGES=1 asks for it. */
const GPU_IMAGES = in_node && process.env.VIT_MSN_ALL_IMAGES === "1" ? IMAGES : 50;

test.skipIf(skipped(!in_node || no_webgpu !== undefined, "many images on WebGPU need Node and a GPU"))(
  `it classifies ${GPU_IMAGES} images on WebGPU as the reference does`,
  { timeout: 600_000 },
  async () => {
    const { images, logits } = await read_test_set();
    const files = await model_files("models/fashion");
    const { model, processor } = await pipeline("image-classification", files, { device: "webgpu" });
    expect(model.device).toBe("webgpu");
    let largest = 0;
    const batch = 50;
    for (let start = 0; start < GPU_IMAGES; start += batch) {
      const { pixel_values } = await processor(images.slice(start, start + batch));
      const found = (await model.forward({ pixel_values })).logits.data;
      const expected = logits.subarray(start * LABELS, (start + batch) * LABELS);
      for (let i = 0; i < batch; i++) {
        const [a, b] = [found, expected].map((all) => argmax(all.subarray(i * LABELS, (i + 1) * LABELS)));
        expect(a, `top-1 of image ${start + i}`).toBe(b);
      }
      largest = Math.max(largest, max_difference(found, expected));
    }
    console.log(
      `fashion: top-1 as the reference on ${GPU_IMAGES} on WebGPU, logits within ${largest.toExponential(1)}`,
    );
    expect(largest).toBeLessThan(1e-4);
    await model.dispose();
  },
);
