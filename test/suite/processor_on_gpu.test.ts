import {
  DeviceTensor,
  ImageClassificationPipeline,
  ImageFeatureExtractionPipeline,
  type ImageProcessorOptions,
  RawImage,
  Tensor,
  ViTImageProcessor,
  ViTMSNForImageClassification,
  ViTMSNModel,
} from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { open_device, watched } from "../support/gpu_devices.ts";
import { error_of } from "../support/rejections.ts";
import { skipped } from "../support/skips.ts";
import { no_webgpu } from "../support/webgpu.ts";

const FOLDER = "test/fixtures/images";
const FIXTURES = ["landscape", "portrait", "upscale", "grey", "rgba", "exact"];
const CONFIG = {
  hidden_size: 16,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  intermediate_size: 24,
  image_size: 32,
  patch_size: 8,
  num_labels: 3,
};

/** An image of noise. */
function noise(width: number, height: number, channels: 1 | 2 | 3 | 4): RawImage {
  let state = 7;
  const data = Uint8Array.from({ length: width * height * channels }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
  return new RawImage(data, width, height, channels);
}

describe.skipIf(no_webgpu !== undefined)("the image processor on WebGPU", () => {
  let device: GPUDevice;
  let model: ViTMSNForImageClassification;
  beforeAll(async () => {
    device = await open_device();
    model = await ViTMSNForImageClassification.from_config(CONFIG, { device });
  });
  afterAll(() => model.dispose());

  /** Both ways, which must give the same to the bit. */
  async function expect_same(images: RawImage | RawImage[], settings: ImageProcessorOptions = {}) {
    const processor = new ViTImageProcessor(settings);
    const [here, there] = [await processor(images), await processor(images, { device: model })];
    const { pixel_values } = there;
    expect(pixel_values).toBeInstanceOf(DeviceTensor);
    expect([pixel_values.location, pixel_values.type]).toEqual(["webgpu", "float32"]);
    expect(pixel_values.dims).toEqual(here.pixel_values.dims);
    expect(pixel_values.size).toBe(here.pixel_values.size);
    expect(there.original_sizes).toEqual(here.original_sizes);
    expect(there.reshaped_input_sizes).toEqual(here.reshaped_input_sizes);
    expect(await pixel_values.getData()).toEqual(here.pixel_values.data);
    pixel_values.dispose();
  }

  test.each(FIXTURES)("gives for %s.png what the CPU gives", async (name) => {
    await expect_same(await RawImage.read(await read_file(`${FOLDER}/${name}.png`)));
  });

  test.each(["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] as const)(
    "resamples by %s, down, up and in the order of Pillow's passes",
    async (resample) => {
      for (const [width, height] of [
        [61, 43],
        [9, 50],
        [40, 7],
        [300, 20],
        [20, 300],
        [32, 33],
        [1, 1],
      ] as const) {
        await expect_same(noise(width, height, 3), { resample, size: [32, 24] });
      }
    },
  );

  test.each<[string, ImageProcessorOptions]>([
    ["a centre crop", { size: { shortest_edge: 40 }, do_center_crop: true, crop_size: 32 }],
    ["a crop beyond the image", { size: 20, do_center_crop: true, crop_size: [33, 27] }],
    ["no resize", { do_resize: false }],
    ["no values but bytes", { size: 16, do_rescale: false, do_normalize: false }],
    ["its own mean and deviation", { size: 16, image_mean: [0.1, 0.5, 0.9], image_std: [0.2, 0.3, 2] }],
    ["a longest edge", { size: { shortest_edge: 30, longest_edge: 35 } }],
  ])("takes %s", async (_, settings) => {
    await expect_same(noise(57, 41, 3), settings);
  });

  test.each([1, 2, 3, 4] as const)("takes images of %i channels", async (channels) => {
    await expect_same([noise(37, 21, channels), noise(22, 50, channels)], { size: 16 });
  });

  test("passes pixels to the model without reading them back", async () => {
    const processor = new ViTImageProcessor({ size: 32 });
    const images = [noise(50, 40, 3), noise(33, 90, 3)];
    const here = await processor(images);
    const { pixel_values } = await processor(images, { device: model });
    const { logits } = await model.forward({ pixel_values });
    expect(logits.data).toEqual((await model.forward(here)).logits.data);
    // It stays the caller's, who may use it again.
    expect((await model({ pixel_values })).logits.data).toEqual(logits.data);
    pixel_values.dispose();
    pixel_values.dispose();
    expect((await error_of(model.forward({ pixel_values }))).code).toBe("DISPOSED");
    expect((await error_of(pixel_values.getData())).code).toBe("DISPOSED");
  });

  test("gives tensors whose errors name what they can't do", async () => {
    const { pixel_values } = await new ViTImageProcessor({ size: 32 })(noise(8, 8, 3), { device: model });
    expect(() => pixel_values.data).toThrow(/await tensor.getData\(\)/);
    expect(() => pixel_values.tolist()).toThrow(/getData/);
    pixel_values.dispose();
  });

  test("gives tensors that other models accept, too", async () => {
    const { pixel_values } = await new ViTImageProcessor({ size: 32 })(noise(60, 60, 3), { device: model });
    const { logits } = await model.forward({ pixel_values });
    for (const other_device of ["wasm", device] as const) {
      const other = await ViTMSNForImageClassification.from_config(CONFIG, { device: other_device });
      const found = (await other.forward({ pixel_values })).logits.data;
      for (const [i, value] of found.entries()) expect(value).toBeCloseTo(logits.data[i] as number, 5);
      await other.dispose();
    }
    pixel_values.dispose();
  });

  test("frees everything, and a disposed model's tensors are disposed", async () => {
    const own = await ViTMSNModel.from_config(CONFIG, { device });
    const processor = new ViTImageProcessor({ size: 32 });
    const { handles } = own.memory();
    for (let i = 0; i < 3; i++) {
      const { pixel_values } = await processor([noise(70, 50, 3), noise(70, 50, 4)], { device: own });
      await own.forward({ pixel_values });
      pixel_values.dispose();
    }
    const bad = [noise(70, 50, 3), new Uint8Array(3)];
    expect((await error_of(processor(bad, { device: own }))).code).toBe("INVALID_IMAGE");
    const uneven = [noise(70, 50, 3), noise(50, 70, 3)];
    const size = { shortest_edge: 20 };
    expect((await error_of(processor(uneven, { device: own, size }))).code).toBe("INVALID_ARGUMENT");
    expect(own.memory().handles).toBe(handles);
    const { pixel_values } = await processor(noise(3, 3, 3), { device: own });
    await own.dispose();
    expect((await error_of(pixel_values.getData())).code).toBe("DISPOSED");
    pixel_values.dispose();
    expect((await error_of(processor(noise(3, 3, 3), { device: own }))).code).toBe("DISPOSED");
  });

  test("is the CPU's for what the GPU doesn't take", async () => {
    const on_cpu = async (image: RawImage, settings: ImageProcessorOptions, on: { device: object }) => {
      const processor = new ViTImageProcessor(settings);
      const { pixel_values } = await processor(image, on as { device: typeof model });
      expect(pixel_values).not.toBeInstanceOf(DeviceTensor);
      expect(pixel_values.location).toBe("cpu");
      expect(pixel_values.data).toEqual((await processor(image)).pixel_values.data);
      pixel_values.dispose();
      expect(pixel_values.data.length).toBeGreaterThan(0);
    };
    const grey = { do_convert_rgb: false, image_mean: [0.5], image_std: [0.5] };
    await on_cpu(noise(9, 9, 1), grey, { device: model });
    const wasm = await ViTMSNModel.from_config(CONFIG, { device: "wasm" });
    await on_cpu(noise(9, 9, 3), {}, { device: wasm });
    await wasm.dispose();
    const { view } = watched(device, { binds: 20_000 });
    const narrow = await ViTMSNModel.from_config(CONFIG, { device: view });
    await on_cpu(noise(90, 90, 3), { size: 32 }, { device: narrow });
    await on_cpu(noise(9, 9, 3), { size: 50 }, { device: narrow });
    await narrow.dispose();
  });

  test.each([{}, "webgpu", null, 3])("refuses device: %j", async (wrong) => {
    const processor = new ViTImageProcessor();
    const error = await error_of(processor(noise(2, 2, 3), { device: wrong as unknown as typeof model }));
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).toContain("device must be a model");
  });

  test("pipelines use it by themselves and free what it made", async () => {
    const processor = new ViTImageProcessor({ size: 32 });
    const images = [noise(64, 48, 3), noise(40, 90, 4), noise(20, 20, 1)];
    const pixel_values = (await processor(images)).pixel_values;
    const expected = (await model.forward({ pixel_values })).logits;
    const { handles } = model.memory();
    const classify = new ImageClassificationPipeline(model, processor);
    const found = await classify(images, { batch_size: 2, function_to_apply: "none", top_k: 3 });
    for (const [i, scores] of found.entries()) {
      const best = Math.max(...expected.data.subarray(3 * i, 3 * i + 3));
      expect(scores[0]?.score).toBeCloseTo(best, 5);
    }
    expect(model.memory().handles).toBe(handles);
    const backbone = await ViTMSNModel.from_config(CONFIG, { device });
    const embed = new ImageFeatureExtractionPipeline(backbone, processor, true);
    const features = await embed(images);
    const same = await backbone.get_image_features({ pixel_values });
    expect(features.dims).toEqual([3, 16]);
    for (const [i, value] of features.data.entries()) expect(value).toBeCloseTo(same.data[i] as number, 5);
    await backbone.dispose();
  });

  describe.skipIf(skipped(typeof document === "undefined", "canvases and video frames need a page"))(
    "in a page",
    () => {
      const opaque = () => {
        const { width, height, data } = noise(45, 60, 4);
        const pixels = Uint8ClampedArray.from(data, (byte, i) => (i % 4 === 3 ? 255 : byte));
        return new ImageData(pixels, width, height);
      };
      function canvas_of(image: ImageData): HTMLCanvasElement {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.width, image.height];
        (canvas.getContext("2d") as CanvasRenderingContext2D).putImageData(image, 0, 0);
        return canvas;
      }
      function offscreen_of(image: ImageData): OffscreenCanvas {
        const canvas = new OffscreenCanvas(image.width, image.height);
        (canvas.getContext("2d") as OffscreenCanvasRenderingContext2D).putImageData(image, 0, 0);
        return canvas;
      }

      test.each<[string, () => HTMLCanvasElement | OffscreenCanvas | VideoFrame | Promise<ImageBitmap>]>([
        ["a canvas", () => canvas_of(opaque())],
        ["an OffscreenCanvas", () => offscreen_of(opaque())],
        ["an ImageBitmap", () => createImageBitmap(opaque())],
        ["a VideoFrame", () => new VideoFrame(canvas_of(opaque()), { timestamp: 0 })],
      ])("%s is uploaded as it is", async (_, make) => {
        const processor = new ViTImageProcessor({ size: 32 });
        const { data, width, height } = opaque();
        const expected = await processor(new RawImage(data, width, height, 4));
        const image = await make();
        const { pixel_values, original_sizes } = await processor(image, { device: model });
        expect(pixel_values).toBeInstanceOf(DeviceTensor);
        expect(original_sizes).toEqual([[60, 45]]);
        expect(await pixel_values.getData()).toEqual(expected.pixel_values.data);
        const { logits } = await model.forward({ pixel_values });
        expect(logits.data).toEqual((await model.forward(expected)).logits.data);
        pixel_values.dispose();
      });

      test("colours under low alpha come within what a canvas keeps of them", async () => {
        const { width, height, data } = noise(32, 32, 4);
        const pixels = Uint8ClampedArray.from(data, (byte, i) => (i % 4 === 3 ? 128 + (byte >> 1) : byte));
        const canvas = canvas_of(new ImageData(pixels, width, height));
        const processor = new ViTImageProcessor({ size: 32, do_normalize: false, do_rescale: false });
        const here = (await processor(canvas)).pixel_values.data;
        const { pixel_values } = await processor(canvas, { device: model });
        const there = await pixel_values.getData();
        for (const [i, value] of there.entries())
          expect(Math.abs(value - (here[i] as number))).toBeLessThanOrEqual(1);
        pixel_values.dispose();
      });

      test("an image without pixels is an error", async () => {
        const processor = new ViTImageProcessor();
        const error = await error_of(processor(new Image(), { device: model }));
        expect(error.code).toBe("INVALID_IMAGE");
      });
    },
  );

  test("isn't asked by a forward pass for tensors in JavaScript memory", async () => {
    const pixel_values = new Tensor("float32", new Float32Array(3072), [1, 3, 32, 32]);
    expect(pixel_values.location).toBe("cpu");
    expect((await model.forward({ pixel_values })).logits.dims).toEqual([1, 3]);
  });
});
