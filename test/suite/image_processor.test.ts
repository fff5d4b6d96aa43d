import { beforeAll, describe, expect, test, vi } from "vitest";
import { next_task } from "../../ts/engine/pacer.ts";
import { ViTImageProcessor } from "../../ts/image/image_processing_vit.ts";
import { output_size } from "../../ts/image/output_size.ts";
import { RawImage } from "../../ts/image/raw_image.ts";
import { read_file } from "../support/files.ts";
import { difference } from "../support/images.ts";
import { abort_at_look } from "../support/signals.ts";
import { type FixtureTensor, read_tensors } from "../support/tensors.ts";

const FOLDER = "test/fixtures/images";

describe("images become what the reference makes of them", () => {
  let expected: Map<string, FixtureTensor>;
  beforeAll(async () => {
    expected = await read_tensors(`${FOLDER}/expected.safetensors`);
  });

  test.each(["landscape", "portrait", "upscale", "grey", "rgba", "exact"])("%s.png", async (name) => {
    const processor = new ViTImageProcessor();
    const image = await RawImage.read(await read_file(`${FOLDER}/${name}.png`));
    const { pixel_values, original_sizes, reshaped_input_sizes } = await processor(image);
    expect(pixel_values.type).toBe("float32");
    expect(pixel_values.dims).toEqual([1, 3, 224, 224]);
    expect(original_sizes).toEqual([[image.height, image.width]]);
    expect(reshaped_input_sizes).toEqual([[224, 224]]);
    const pil = difference(
      pixel_values.data,
      (expected.get(`out.pil.${name}`) as FixtureTensor).data as ArrayLike<number>,
    );
    expect(pil.mean).toBeLessThanOrEqual(1e-3);
    // Half floats near 1 are 2^-11 apart: the resized bytes are Pillow's own.
    expect(pil.max).toBeLessThanOrEqual(2 ** -11);
    const torchvision = difference(
      pixel_values.data,
      (expected.get(`out.torchvision.${name}`) as FixtureTensor).data as ArrayLike<number>,
    );
    expect(torchvision.max).toBeLessThanOrEqual(2 / 255 / 0.5 + 2 ** -11);
  });

  test("landscape.jpg, whose expected values come from the image before compression", async () => {
    const processor = new ViTImageProcessor();
    const { pixel_values } = await processor(await read_file(`${FOLDER}/landscape.jpg`));
    const pil = difference(
      pixel_values.data,
      (expected.get("out.pil.landscape") as FixtureTensor).data as ArrayLike<number>,
    );
    expect(pil.mean).toBeLessThan(0.06);
  });
});

/**
 * SHA-256 of the float32 values that NumPy gives for 0 to 255 in each channel, with transformers' steps:
 * ((x.astype(float64) * (1 / 255)).astype(float32) - float32(mean)) / float32(std).
 */
test.each([
  [
    "ImageNet's",
    [0.485, 0.456, 0.406],
    [0.229, 0.224, 0.225],
    "1d8b9af12b7b391827f7c801265239e21435c7e29b4d78c6189a35e437633897",
  ],
  [
    "ViT's",
    [0.5, 0.5, 0.5],
    [0.5, 0.5, 0.5],
    "59e92db758d185f3e78b2d7a346580fc50ce7b0317d28f68f40ad10293501ab3",
  ],
  [
    "CLIP's",
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
    "5d23c0b115c373c73875b37dce36aa6a54af484dd4332d5f9d07d6ebecb20900",
  ],
])(
  "every pixel value has the reference's bits with %s mean and std",
  async (_, image_mean, image_std, expected) => {
    const processor = new ViTImageProcessor({ do_resize: false, image_mean, image_std });
    const image = new RawImage(
      Uint8Array.from({ length: 3 * 256 }, (_, i) => Math.floor(i / 3)),
      256,
      1,
      3,
    );
    const { pixel_values } = await processor(image);
    const digest = await crypto.subtle.digest(
      "SHA-256",
      Float32Array.from(pixel_values.data as Float32Array),
    );
    expect([...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("")).toBe(
      expected,
    );
  },
);

/** An image whose pixel i has the value i. */
function ramp(width: number, height: number, channels: 1 | 3 = 3): RawImage {
  const data = Uint8Array.from({ length: width * height * channels }, (_, i) => i % 256);
  return new RawImage(data, width, height, channels);
}

describe("the processor", () => {
  test("is called like a function, by call and by preprocess", async () => {
    const processor = new ViTImageProcessor({ size: 4 });
    const image = ramp(4, 4);
    const { pixel_values } = await processor(image);
    expect((await processor.call(image)).pixel_values).toEqual(pixel_values);
    expect((await processor.preprocess([image])).pixel_values).toEqual(pixel_values);
    expect(processor).toBeInstanceOf(ViTImageProcessor);
  });

  test("gives channel after channel, rescaled and normalised in float32", async () => {
    const processor = new ViTImageProcessor({
      do_resize: false,
      image_mean: [0.485, 0.456, 0.406],
      image_std: [0.229, 0.224, 0.225],
    });
    const image = new RawImage(Uint8Array.of(0, 51, 102, 153, 204, 255), 2, 1, 3);
    const { pixel_values } = await processor(image);
    expect(pixel_values.dims).toEqual([1, 3, 1, 2]);
    const exact = [
      (0 - 0.485) / 0.229,
      (0.6 - 0.485) / 0.229,
      (0.2 - 0.456) / 0.224,
      (0.8 - 0.456) / 0.224,
      (0.4 - 0.406) / 0.225,
      (1 - 0.406) / 0.225,
    ];
    expect(difference(pixel_values.data, exact).max).toBeLessThan(1e-6);
  });

  test("batches images of different sizes that end up alike", async () => {
    const processor = new ViTImageProcessor({ size: { height: 5, width: 3 } });
    const { pixel_values, original_sizes } = await processor([ramp(4, 9), ramp(20, 2)]);
    expect(pixel_values.dims).toEqual([2, 3, 5, 3]);
    expect(original_sizes).toEqual([
      [9, 4],
      [2, 20],
    ]);
    const second = await processor(ramp(20, 2));
    expect(pixel_values.data.slice(45)).toEqual(second.pixel_values.data);
  });

  test.each([
    ["3 channels", 3, {}],
    ["4 channels", 4, { do_convert_rgb: false, image_mean: 0, image_std: 1 }],
    ["rows first", 3, { size: { height: 50, width: 2000 } }],
  ] as const)("lets other tasks run while it resizes one large image: %s", async (_, channels, options) => {
    const image = new RawImage(new Uint8Array(2000 * 3000 * channels), 2000, 3000, channels);
    const processor = new ViTImageProcessor();
    // A clock by which every step takes long.
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (now += 1000));
    let is_done = false;
    const processed = processor(image, options).finally(() => {
      is_done = true;
    });
    let tasks = 0;
    for (; !is_done; tasks++) await next_task();
    vi.restoreAllMocks();
    await processed;
    expect(tasks).toBeGreaterThan(10);
  });

  test("an abort ends the resizing of one large image", async () => {
    const image = new RawImage(new Uint8Array(2000 * 3000 * 3), 2000, 3000, 3);
    const { signal, looks } = abort_at_look(8);
    await expect(new ViTImageProcessor()(image, { signal })).rejects.toMatchObject({ code: "ABORTED" });
    expect(looks()).toBeLessThan(12);
  });

  test("names the image of a batch that ends up otherwise", async () => {
    const processor = new ViTImageProcessor({ size: { shortest_edge: 6 } });
    await expect(processor([ramp(4, 9), ramp(20, 2)])).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: expect.stringMatching(/image 1 60×6 pixels/),
    });
  });

  test("overrides its settings for one call", async () => {
    const processor = new ViTImageProcessor({ size: 8 });
    const image = ramp(9, 6);
    const raw = await processor(image, { do_resize: false, do_rescale: false, do_normalize: false });
    expect(raw.pixel_values.dims).toEqual([1, 3, 6, 9]);
    expect([...raw.pixel_values.data.slice(0, 3)]).toEqual([0, 3, 6]);
    const cropped = await processor(image, { size: undefined, do_center_crop: true, crop_size: [4, 2] });
    expect(cropped.pixel_values.dims).toEqual([1, 3, 4, 2]);
    expect(processor.do_resize).toBe(true);
    await expect(processor(image, { image_std: 0 })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  });

  test("keeps grey images grey for a model of one channel", async () => {
    const processor = new ViTImageProcessor({ size: 4, image_mean: [0.5], image_std: [0.25] });
    expect(processor.do_convert_rgb).toBe(false);
    const { pixel_values } = await processor(ramp(4, 4, 1));
    expect(pixel_values.dims).toEqual([1, 1, 4, 4]);
    await expect(processor(ramp(4, 4))).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: expect.stringMatching(/3 channels.*grayscale/),
    });
  });

  test("turns grey and transparent images into RGB", async () => {
    const processor = new ViTImageProcessor({ do_resize: false, do_normalize: false, do_rescale: false });
    const grey = await processor(new RawImage(Uint8Array.of(9), 1, 1, 1));
    expect([...grey.pixel_values.data]).toEqual([9, 9, 9]);
    const clear = await processor(new RawImage(Uint8Array.of(1, 2, 3, 0), 1, 1, 4));
    expect([...clear.pixel_values.data]).toEqual([1, 2, 3]);
  });

  test("refuses an empty list", async () => {
    await expect(new ViTImageProcessor()([])).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  });

  test("refuses an image so narrow that its resized form would be huge or empty", async () => {
    const huge = new ViTImageProcessor({ size: { shortest_edge: 224 } });
    await expect(huge(ramp(30_000, 1))).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(/Image 0 of 30000×1 pixels would become 6720000×224/),
    });
    const empty = new ViTImageProcessor({ size: { max_height: 50, max_width: 50 } });
    await expect(empty(ramp(30_000, 1))).rejects.toMatchObject({ code: "INVALID_IMAGE" });
  });

  test("stops when its signal fires", async () => {
    const controller = new AbortController();
    controller.abort(new Error("enough"));
    const processor = new ViTImageProcessor();
    await expect(processor(ramp(4, 4), { signal: controller.signal })).rejects.toMatchObject({
      code: "ABORTED",
    });
  });
});

// As transformers 5.23's get_size_with_aspect_ratio, get_resize_output_image_size and
// get_image_size_for_max_height_width give them; images are [height, width].
const SIZES: [Parameters<typeof output_size>[0], [number, number], [number, number]][] = [
  [{ shortest_edge: 224 }, [480, 640], [224, 298]],
  [{ shortest_edge: 224, longest_edge: 300 }, [480, 640], [224, 298]],
  [{ shortest_edge: 33, longest_edge: 50 }, [480, 640], [33, 44]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [480, 640], [800, 1066]],
  [{ shortest_edge: 5, longest_edge: 6 }, [480, 640], [4, 6]],
  [{ shortest_edge: 224 }, [640, 480], [298, 224]],
  [{ shortest_edge: 33 }, [640, 480], [44, 33]],
  [{ shortest_edge: 224, longest_edge: 300 }, [640, 480], [298, 224]],
  [{ shortest_edge: 33, longest_edge: 50 }, [640, 480], [44, 33]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [640, 480], [1066, 800]],
  [{ shortest_edge: 5, longest_edge: 6 }, [640, 480], [6, 4]],
  [{ shortest_edge: 224 }, [100, 100], [224, 224]],
  [{ shortest_edge: 33 }, [100, 100], [33, 33]],
  [{ shortest_edge: 224, longest_edge: 300 }, [100, 100], [224, 224]],
  [{ shortest_edge: 33, longest_edge: 50 }, [100, 100], [33, 33]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [100, 100], [800, 800]],
  [{ shortest_edge: 5, longest_edge: 6 }, [100, 100], [5, 5]],
  [{ shortest_edge: 224 }, [37, 1000], [224, 6054]],
  [{ shortest_edge: 33 }, [37, 1000], [33, 891]],
  [{ shortest_edge: 224, longest_edge: 300 }, [37, 1000], [11, 300]],
  [{ shortest_edge: 33, longest_edge: 50 }, [37, 1000], [2, 50]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [37, 1000], [49, 1333]],
  [{ shortest_edge: 5, longest_edge: 6 }, [37, 1000], [0, 6]],
  [{ shortest_edge: 224 }, [333, 500], [224, 336]],
  [{ shortest_edge: 33 }, [333, 500], [33, 49]],
  [{ shortest_edge: 224, longest_edge: 300 }, [333, 500], [200, 300]],
  [{ shortest_edge: 33, longest_edge: 50 }, [333, 500], [33, 49]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [333, 500], [800, 1201]],
  [{ shortest_edge: 5, longest_edge: 6 }, [333, 500], [4, 6]],
  [{ shortest_edge: 224 }, [1000, 37], [6054, 224]],
  [{ shortest_edge: 33 }, [1000, 37], [891, 33]],
  [{ shortest_edge: 224, longest_edge: 300 }, [1000, 37], [300, 11]],
  [{ shortest_edge: 33, longest_edge: 50 }, [1000, 37], [50, 2]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [1000, 37], [1333, 49]],
  [{ shortest_edge: 5, longest_edge: 6 }, [1000, 37], [6, 0]],
  [{ shortest_edge: 224 }, [7, 9], [224, 288]],
  [{ shortest_edge: 33 }, [7, 9], [33, 42]],
  [{ shortest_edge: 224, longest_edge: 300 }, [7, 9], [224, 288]],
  [{ shortest_edge: 33, longest_edge: 50 }, [7, 9], [33, 42]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [7, 9], [800, 1028]],
  [{ shortest_edge: 5, longest_edge: 6 }, [7, 9], [5, 6]],
  [{ shortest_edge: 224 }, [225, 224], [225, 224]],
  [{ shortest_edge: 33 }, [225, 224], [33, 33]],
  [{ shortest_edge: 224, longest_edge: 300 }, [225, 224], [225, 224]],
  [{ shortest_edge: 33, longest_edge: 50 }, [225, 224], [33, 33]],
  [{ shortest_edge: 800, longest_edge: 1333 }, [225, 224], [803, 800]],
  [{ shortest_edge: 5, longest_edge: 6 }, [225, 224], [5, 5]],
  [{ max_height: 224, max_width: 224 }, [480, 640], [168, 224]],
  [{ max_height: 100, max_width: 300 }, [480, 640], [100, 133]],
  [{ max_height: 224, max_width: 224 }, [37, 1000], [8, 224]],
  [{ max_height: 100, max_width: 300 }, [37, 1000], [11, 300]],
  [{ max_height: 224, max_width: 224 }, [100, 100], [224, 224]],
  [{ max_height: 100, max_width: 300 }, [100, 100], [100, 100]],
  [{ height: 20, width: 30 }, [480, 640], [20, 30]],
];

describe("sizes after resizing are the reference's", () => {
  test.each(SIZES)("%j of %j is %j", (size, [height, width], expected) => {
    expect(output_size(size, height, width)).toEqual(expected);
  });
});

describe("preprocessor_config.json", () => {
  const legacy = {
    do_normalize: true,
    do_resize: true,
    feature_extractor_type: "ViTFeatureExtractor",
    image_mean: [0.485, 0.456, 0.406],
    image_std: [0.229, 0.224, 0.225],
    resample: 2,
    size: 224,
  };
  const as_files = (file: string, value: unknown) => ({
    [file]: new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value)),
  });

  test("is read in the hub's legacy form, with the reference's defaults for the rest", async () => {
    const processor = await ViTImageProcessor.from_pretrained(as_files("preprocessor_config.json", legacy));
    expect(processor.to_dict()).toEqual({
      feature_extractor_type: "ViTFeatureExtractor",
      do_resize: true,
      size: { height: 224, width: 224 },
      resample: 2,
      do_center_crop: false,
      crop_size: { height: 224, width: 224 },
      do_rescale: true,
      rescale_factor: 1 / 255,
      do_normalize: true,
      image_mean: [0.485, 0.456, 0.406],
      image_std: [0.229, 0.224, 0.225],
      do_convert_rgb: true,
    });
  });

  test("is read from processor_config.json, too", async () => {
    const files = as_files("processor_config.json", { image_processor: { ...legacy, size: [20, 30] } });
    const processor = await ViTImageProcessor.from_pretrained(files);
    expect(processor.size).toEqual({ height: 20, width: 30 });
  });

  test("keeps unknown fields and comes back the same", async () => {
    const config = {
      ...legacy,
      size: { shortest_edge: 30, longest_edge: 40 },
      crop_pct: 0.9,
      extra: { a: [1] },
    };
    const processor = new ViTImageProcessor(config);
    const again = await ViTImageProcessor.from_pretrained(
      as_files("preprocessor_config.json", processor.to_json_string()),
    );
    expect(again.to_dict()).toEqual(processor.to_dict());
    expect(again.to_dict()).toMatchObject({ crop_pct: 0.9, extra: { a: [1] }, size: config.size });
  });

  test("says which file is missing", async () => {
    await expect(ViTImageProcessor.from_pretrained({})).rejects.toMatchObject({
      code: "NOT_FOUND",
      message: expect.stringContaining("preprocessor_config.json"),
    });
  });

  test("shows numbers in a list that JSON has no words for", () => {
    const make = () => new ViTImageProcessor({ image_mean: [Number.NaN, Number.POSITIVE_INFINITY, 0.5] });
    expect(make).toThrow(/image_mean must be .*; it is \[NaN,Infinity,0\.5\]/);
  });

  test.each([
    ["image_std", [0.5, 0, 0.5]],
    ["image_std", [0.5, 0.5]],
    ["image_std", 1e-60],
    ["image_std", "0.5"],
    ["image_mean", [0.5, null, 0.5]],
    ["image_mean", []],
    ["image_mean", { r: 0.5 }],
    ["rescale_factor", "1/255"],
    ["rescale_factor", 1e39],
    ["resample", 7],
    ["resample", "cubic"],
    ["resample", "constructor"],
    ["size", -1],
    ["size", 0],
    ["size", 22.5],
    ["size", "224"],
    ["size", [224]],
    ["size", {}],
    ["size", { height: 224 }],
    ["size", { height: "224", width: 224 }],
    ["size", { shortest_edge: 0 }],
    ["size", { longest_edge: 100 }],
    ["size", 60_000],
    ["size", 1e300],
    ["crop_size", { shortest_edge: 10 }],
  ])("names the key: %s of %j", async (key, value) => {
    const files = as_files("preprocessor_config.json", { ...legacy, [key]: value });
    await expect(ViTImageProcessor.from_pretrained(files)).rejects.toMatchObject({
      code: "INVALID_CONFIG",
      message: expect.stringMatching(new RegExp(`preprocessor_config.json: ${key} must be`)),
    });
  });

  test.each([
    ["size", Number.NaN],
    ["image_mean", Number.NaN],
    ["rescale_factor", Number.POSITIVE_INFINITY],
  ])("refuses %s of %s", (key, value) => {
    expect(() => new ViTImageProcessor({ [key]: value })).toThrowError(
      expect.objectContaining({ code: "INVALID_CONFIG" }),
    );
  });

  test("refuses statistics that don't fit RGB when RGB is asked for", () => {
    const config = { image_mean: [0.5], image_std: [0.5], do_convert_rgb: true };
    expect(() => new ViTImageProcessor(config)).toThrowError(/image_mean must be three numbers/);
  });
});
