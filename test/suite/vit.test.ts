import {
  pipeline,
  RawImage,
  Tensor,
  ViTImageProcessor,
  ViTMSNForImageClassification,
  ViTMSNModel,
} from "vit-msn";
import { expect, test } from "vitest";
import { temporary_directory } from "../support/directories.ts";
import { fixture_files } from "../support/models.ts";

// A classifier's `vit`: its backbone, on the same engine and weights.

const PIXELS = new Tensor(
  "float32",
  Float32Array.from({ length: 3072 }, (_, i) => Math.sin(i)),
  [1, 3, 32, 32],
);

test("vit gives what the backbone alone gives, and takes no memory", async () => {
  const files = await fixture_files("tiny");
  const model = await ViTMSNForImageClassification.from_pretrained(files, { device: "wasm" });
  const before = model.memory();
  const { vit } = model;
  expect(vit).toBeInstanceOf(ViTMSNModel);
  expect(model.vit).toBe(vit);
  const alone = await ViTMSNModel.from_pretrained(files, { device: "wasm" });
  const inputs = { pixel_values: PIXELS, output_hidden_states: true };
  expect(await vit.forward(inputs)).toEqual(await alone.forward(inputs));
  expect(await vit.get_image_features(inputs)).toEqual(await alone.get_image_features(inputs));
  expect(model.memory()).toMatchObject({ handles: before.handles, bytes: before.bytes });
  expect((await vit.profile(inputs)).by_name().map(({ name }) => name)).toContain("patch_embed");
  await Promise.all([model.dispose(), alone.dispose()]);
});

test("vit is saved as a backbone, without the classifier", async () => {
  const files = await fixture_files("tiny");
  const directory = await temporary_directory();
  const model = await ViTMSNForImageClassification.from_pretrained(files);
  await model.vit.save_pretrained(directory.target);
  const saved = await directory.read_files();
  const again = await ViTMSNModel.from_pretrained(saved);
  expect(await again.forward({ pixel_values: PIXELS })).toEqual(
    await model.vit.forward({ pixel_values: PIXELS }),
  );
  const bytes = saved["model.safetensors"] as Uint8Array;
  expect(new TextDecoder().decode(bytes.subarray(0, 20_000))).not.toContain("classifier");
  await Promise.all([model.dispose(), again.dispose(), directory.remove()]);
});

test("classifier and vit are disposed together, whichever is disposed", async () => {
  const files = await fixture_files("tiny");
  for (const name of ["classifier", "vit"] as const) {
    const model = await ViTMSNForImageClassification.from_pretrained(files);
    const { vit } = model;
    await (name === "vit" ? vit : model).dispose();
    const disposed = { code: "DISPOSED" };
    await expect(model.forward({ pixel_values: PIXELS })).rejects.toMatchObject(disposed);
    await expect(vit.forward({ pixel_values: PIXELS })).rejects.toMatchObject(disposed);
  }
});

test("pipelines share a model that is loaded already", async () => {
  const files = await fixture_files("tiny");
  const model = await ViTMSNForImageClassification.from_pretrained(files);
  const image_processor = await ViTImageProcessor.from_pretrained(files);
  const { bytes } = model.memory();
  const teach = await pipeline("few-shot-image-classification", model, { image_processor });
  const embed = await pipeline("image-feature-extraction", model, { image_processor, pool: true });
  const classify = await pipeline("image-classification", model, { image_processor });
  expect(model.memory().bytes).toBe(bytes);
  const grey = new RawImage(new Uint8Array(3072).fill(128), 32, 32, 3);
  const stripes = Uint8Array.from({ length: 3072 }, (_, i) => 255 * (i % 2));
  const striped = new RawImage(stripes, 32, 32, 3);
  await teach.add("grey", grey);
  await teach.add("stripes", striped);
  await teach.fit();
  expect((await teach(striped))[0]?.label).toBe("stripes");
  expect((await embed([grey, striped])).dims).toEqual([2, model.config.hidden_size]);
  const alone = await pipeline("image-classification", files);
  expect(await classify(grey)).toEqual(await alone(grey));
  await Promise.all([teach.dispose(), alone.dispose()]);
  await expect(classify(grey)).rejects.toMatchObject({ code: "DISPOSED" });
});

test("a model that is loaded already needs its processor, and classes where classes are asked for", async () => {
  const files = await fixture_files("tiny");
  const model = await ViTMSNModel.from_pretrained(files);
  const image_processor = await ViTImageProcessor.from_pretrained(files);
  const wrong = (argument: string) => ({ code: "INVALID_ARGUMENT", details: { argument } });
  await expect(pipeline("image-feature-extraction", model)).rejects.toMatchObject(wrong("image_processor"));
  await expect(pipeline("image-classification", model, { image_processor })).rejects.toMatchObject(
    wrong("model"),
  );
  await model.dispose();
});
