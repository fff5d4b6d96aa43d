import {
  type ImageClassificationPipeline,
  type ImageFeatureExtractionPipeline,
  pipeline,
  RawImage,
  ViTImageProcessor,
  ViTMSNForImageClassification,
  ViTMSNModel,
} from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { fixture_files, model_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";

const BOOT = "models/fashion/pictures/9-ankle-boot.png";
const BAG = "models/fashion/pictures/8-bag.png";

describe("image-classification", () => {
  let classify: ImageClassificationPipeline;
  let boot: Uint8Array;
  let bag: Uint8Array;

  beforeAll(async () => {
    classify = await pipeline("image-classification", await model_files("models/fashion"));
    [boot, bag] = [await read_file(BOOT), await read_file(BAG)];
  });
  afterAll(() => classify.dispose());

  test("one image gives the five likeliest classes, best first", async () => {
    const results = await classify(boot);
    expect(results).toHaveLength(5);
    expect(results[0]?.label).toBe("Ankle boot");
    expect(results[0]?.score).toBeGreaterThan(0.9);
    const scores = results.map(({ score }) => score);
    expect(scores).toEqual(scores.toSorted((a, b) => b - a));
  });

  test("a list gives a list, in batches of any size", async () => {
    for (const batch_size of [1, 2, 3]) {
      const results = await classify([boot, bag, boot], { batch_size, top_k: 1 });
      expect(results.map(([best]) => best?.label)).toEqual(["Ankle boot", "Bag", "Ankle boot"]);
    }
    expect(await classify([])).toEqual([]);
  });

  test("takes bytes, Blobs, RawImages and data URLs, and gives the same for each", async () => {
    const blob = new Blob([boot as BlobPart], { type: "image/png" });
    const base64 = btoa(String.fromCharCode(...boot));
    const inputs = [
      boot,
      boot.slice().buffer,
      blob,
      await RawImage.read(boot),
      `data:image/png;base64,${base64}`,
    ];
    const [first, ...others] = await classify(inputs);
    for (const results of others) expect(results).toEqual(first);
  });

  test("top_k is clamped to the number of classes, and null is the default", async () => {
    expect(await classify(boot, { top_k: 100 })).toHaveLength(10);
    expect(await classify(boot, { top_k: null })).toHaveLength(5);
    expect((await error_of(classify(boot, { top_k: 0 }))).message).toContain("top_k");
    expect((await error_of(classify(boot, { batch_size: 1.5 }))).message).toContain("batch_size");
  });

  test("function_to_apply: softmax sums to one, sigmoid and none don't change the order", async () => {
    const all = { top_k: 10 };
    const softmax = await classify(boot, { ...all, function_to_apply: "softmax" });
    expect(softmax.reduce((sum, { score }) => sum + score, 0)).toBeCloseTo(1, 10);
    expect(await classify(boot, all)).toEqual(softmax);
    const none = await classify(boot, { ...all, function_to_apply: "none" });
    const sigmoid = await classify(boot, { ...all, function_to_apply: "SIGMOID" as "sigmoid" });
    expect(none.map(({ label }) => label)).toEqual(softmax.map(({ label }) => label));
    none.forEach(({ score }, i) => {
      expect(sigmoid[i]?.score).toBeCloseTo(1 / (1 + Math.exp(-score)), 10);
    });
    expect((await error_of(classify(boot, { function_to_apply: "default" as never }))).message).toContain(
      "softmax",
    );
  });

  test("by default, scores follow the problem: none for regression, sigmoid for several labels, else softmax", async () => {
    const image = new RawImage(new Uint8Array(32 * 32 * 3).fill(128), 32, 32, 3);
    for (const [name, function_to_apply] of [
      ["regression", "none"],
      ["multi_label", "sigmoid"],
      ["tiny", "softmax"],
    ] as const) {
      const other = await pipeline("image-classification", await fixture_files(name));
      expect(await other(image)).toEqual(await other(image, { function_to_apply }));
      await other.dispose();
    }
  });

  test("a file that isn't an image is an error, and the pipeline still works", async () => {
    const page = new TextEncoder().encode("<!doctype html><title>404</title>");
    expect((await error_of(classify(page))).code).toBe("INVALID_IMAGE");
    expect((await error_of(classify([boot, boot.slice(0, 100)]))).code).toBe("INVALID_IMAGE");
    expect((await error_of(classify(undefined as never))).code).toBe("INVALID_ARGUMENT");
    expect((await classify(boot))[0]?.label).toBe("Ankle boot");
  });

  test("an aborted call throws ABORTED", async () => {
    expect((await error_of(classify(boot, { signal: AbortSignal.abort() }))).code).toBe("ABORTED");
  });

  test("a processor whose images don't fit the model is refused before any is read", async () => {
    const { model } = classify;
    const unread = "there/is/no/such/image.png";
    for (const settings of [
      { size: { height: 8192, width: 8192 } },
      { size: { shortest_edge: 8192 }, do_center_crop: true, crop_size: { height: 8192, width: 8192 } },
    ]) {
      const image_processor = new ViTImageProcessor(settings);
      const other = await pipeline("image-classification", model, { image_processor });
      const error = await error_of(other(unread));
      expect(error.code).toBe("INVALID_ARGUMENT");
      expect(error.message).toContain("size (8192×8192) doesn't match the model's (28×28)");
    }
  });

  test("has its model and processor, and dispose ends it", async () => {
    const other = await pipeline("image-classification", await model_files("models/fashion"));
    expect(other.model).toBeInstanceOf(ViTMSNForImageClassification);
    expect(other.task).toBe("image-classification");
    await other.dispose();
    expect((await error_of(other(boot))).code).toBe("DISPOSED");
  });
});

describe("image-feature-extraction", () => {
  let embed: ImageFeatureExtractionPipeline;
  let images: Uint8Array[];

  beforeAll(async () => {
    embed = await pipeline("image-feature-extraction", await model_files("models/fashion"), { pool: true });
    images = [await read_file(BOOT), await read_file(BAG)];
  });
  afterAll(() => embed.dispose());

  test("pool: one embedding per image, the CLS token of last_hidden_state", async () => {
    expect(embed.model).toBeInstanceOf(ViTMSNModel);
    const pooled = await embed(images);
    const tokens = await embed(images, { pool: false, batch_size: 2 });
    expect([pooled.dims, tokens.dims]).toEqual([
      [2, 128],
      [2, 50, 128],
    ]);
    expect(Array.from(pooled.data.subarray(0, 128))).toEqual(Array.from(tokens.data.subarray(0, 128)));
    expect(await embed(images, { pool: "cls" })).toEqual(pooled);
  });

  test('pool: "mean" is the mean of the patch tokens', async () => {
    const mean = await embed(images[0] as Uint8Array, { pool: "mean" });
    const tokens = await embed(images[0] as Uint8Array, { pool: false });
    for (let column = 0; column < 128; column++) {
      let sum = 0;
      for (let token = 1; token < 50; token++) sum += tokens.data[token * 128 + column] as number;
      expect(mean.data[column]).toBeCloseTo(sum / 49, 4);
    }
  });

  test("refuses an empty list and an unknown pool", async () => {
    expect((await error_of(embed([]))).code).toBe("INVALID_ARGUMENT");
    expect((await error_of(embed(images, { pool: "max" as never }))).message).toContain("pool");
  });
});

test("an unknown task names the known ones", async () => {
  const error = await error_of(pipeline("text-generation" as never));
  expect(error.code).toBe("UNSUPPORTED");
  expect(error.message).toContain('"image-classification" or "image-feature-extraction"');
});
