import { RawImage, ViTImageProcessor } from "vit-msn";
import { expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { error_of } from "../support/rejections.ts";

interface Case {
  /** preprocessor_config.json, as Python writes it. */
  config: string;
  dims: number[];
  /** [place, value] of some of the pixels that transformers gives. */
  samples: [number, number][];
}
const cases: Case[] = JSON.parse(
  new TextDecoder().decode(await read_file("test/fixtures/processor_families.json")),
);
const image = new RawImage(
  Uint8ClampedArray.from({ length: 20 * 30 * 3 }, (_, i) => {
    const [y, x, c] = [Math.floor(i / 90), Math.floor(i / 3) % 30, i % 3];
    return (x * x * 3 + y * 13 + c * 50 + x * y) % 256;
  }),
  30,
  20,
  3,
);
const load = (config: string) =>
  ViTImageProcessor.from_pretrained({ "preprocessor_config.json": new TextEncoder().encode(config) });

test.each(cases)("the pixels of $config are transformers'", async ({ config, dims, samples }) => {
  const processor = await load(config);
  const { pixel_values } = await processor(image);
  expect(pixel_values.dims).toEqual(dims);
  for (const [at, value] of samples) expect(pixel_values.data[at]).toBeCloseTo(value, 5);
  // What is saved does the same, whatever family it is written as.
  const again = await load(processor.to_json_string());
  expect((await again(image)).pixel_values.data).toEqual(pixel_values.data);
});

test("a processor that does more than resize, crop and normalise is refused by name", async () => {
  for (const type of ["MobileViTImageProcessor", "ImageGPTFeatureExtractor", "constructor", 5]) {
    const key = String(type).endsWith("FeatureExtractor") ? "feature_extractor_type" : "image_processor_type";
    const error = await error_of(load(JSON.stringify({ [key]: type })));
    expect(error.code).toBe("INVALID_CONFIG");
    expect(error.message).toContain(JSON.stringify(type));
  }
});

test.each([
  [{ image_processor_type: "ConvNextImageProcessor", size: { height: 28, width: 28 } }, "size"],
  [{ image_processor_type: "ConvNextImageProcessor", size: 28, do_center_crop: true }, "do_center_crop"],
  [{ image_processor_type: "PoolFormerImageProcessor", crop_pct: 0 }, "crop_pct"],
  [{ image_processor_type: "EfficientNetImageProcessor", rescale_offset: true }, "rescale_offset"],
  [{ image_processor_type: "ViTImageProcessor", do_pad: true, pad_size: { height: 9, width: 9 } }, "do_pad"],
])("%j is refused by its key", async (config, key) => {
  const error = await error_of(load(JSON.stringify(config)));
  expect(error.code).toBe("INVALID_CONFIG");
  expect(error.message).toContain(`preprocessor_config.json: ${key} `);
});

test("a processor that transformers doesn't know is treated as ViT's, as in transformers", async () => {
  for (const type of ["ViTMSNImageProcessor", "AutoImageProcessor", "ViTImageProcessorPil"]) {
    const processor = await load(JSON.stringify({ image_processor_type: type, size: 9 }));
    expect(processor.size).toEqual({ height: 9, width: 9 });
    expect(processor.resample).toBe(2);
  }
});
