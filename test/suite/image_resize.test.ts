import { beforeAll, describe, expect, test } from "vitest";
import { RawImage } from "../../ts/image/raw_image.ts";
import { RESAMPLE, type ResampleName } from "../../ts/image/resize.ts";
import { read_file } from "../support/files.ts";
import { difference } from "../support/images.ts";
import { type FixtureTensor, read_tensors } from "../support/tensors.ts";

const FOLDER = "test/fixtures/image_files";
const SOURCES = ["rgb.png", "grey.png", "grey_alpha.png", "rgba.png", "wide.png", "one_pixel.png"];
let expected: Map<string, FixtureTensor>;

beforeAll(async () => {
  expected = await read_tensors(`${FOLDER}/expected.safetensors`);
});

async function read(name: string): Promise<RawImage> {
  return RawImage.read(await read_file(`${FOLDER}/${name}`));
}

describe.each(SOURCES)("resizing %s gives Pillow's bytes", (source) => {
  test.each(Object.keys(RESAMPLE) as ResampleName[])("%s", async (filter) => {
    const prefix = `resize.${source}.${filter}.`;
    const cases = [...expected].filter(([name]) => name.startsWith(prefix));
    expect(cases.length).toBeGreaterThan(0);
    for (const [name, { dims, data }] of cases) {
      const [height, width, channels] = dims as [number, number, 1 | 2 | 3 | 4];
      const image = (await read(source)).convert(channels);
      const resized = image.resize(width, height, { resample: filter });
      expect([resized.height, resized.width, resized.channels], name).toEqual(dims);
      expect(difference(resized.data, data as Uint8Array), name).toEqual({ mean: 0, max: 0 });
    }
  });
});

describe("RawImage", () => {
  test("resamples bilinearly unless told otherwise, by name or by Pillow's code", async () => {
    const image = await read("rgb.png");
    const bilinear = image.resize(9, 8, { resample: "bilinear" });
    expect(image.resize(9, 8)).toEqual(bilinear);
    expect(image.resize(9, 8, { resample: 2 })).toEqual(bilinear);
    expect(image.resize(9, 8, { resample: 3 })).not.toEqual(bilinear);
  });

  test("leaves the image as it is when the size stays", async () => {
    const image = await read("rgb.png");
    expect(image.resize(image.width, image.height).data).toEqual(image.data);
  });

  test("turns colour into grey as Pillow does", async () => {
    const image = await read("rgb.png");
    const grey = image.grayscale();
    expect(grey.channels).toBe(1);
    expect(
      difference(grey.data, (expected.get("grey.rgb.png") as FixtureTensor).data as ArrayLike<number>).max,
    ).toBe(0);
  });

  test("converts between channels: alpha is dropped without blending, missing alpha is opaque", () => {
    const rgba = new RawImage(Uint8Array.of(10, 20, 30, 0), 1, 1, 4);
    expect([...rgba.rgb().data]).toEqual([10, 20, 30]);
    expect([...rgba.rgb().rgba().data]).toEqual([10, 20, 30, 255]);
    const grey_alpha = new RawImage(Uint8Array.of(7, 9), 1, 1, 2);
    expect([...grey_alpha.rgba().data]).toEqual([7, 7, 7, 9]);
    expect([...grey_alpha.grayscale().data]).toEqual([7]);
    expect(rgba.data).toEqual(Uint8Array.of(10, 20, 30, 0));
  });

  test("crops with both corners included, as transformers.js", () => {
    const image = new RawImage(
      Uint8Array.from({ length: 12 }, (_, i) => i),
      4,
      3,
      1,
    );
    const cropped = image.crop([1, 1, 2, 2]);
    expect(cropped.size).toEqual([2, 2]);
    expect([...cropped.data]).toEqual([5, 6, 9, 10]);
    expect(() => image.crop([1, 1, 4, 2])).toThrowError(/within 4×3/);
  });

  test("crops the centre and pads with zeros where the image is too small", () => {
    const image = new RawImage(Uint8Array.of(1, 2, 3, 4, 5, 6), 3, 2, 1);
    expect([...image.center_crop(1, 2).data]).toEqual([2, 5]);
    expect([...image.center_crop(2, 4).data]).toEqual([0, 0, 1, 2, 4, 5, 0, 0]);
    expect([...image.center_crop(5, 1).data]).toEqual([0, 1, 2, 3, 0]);
    // An odd row or column of zeros comes first, as in transformers' center_crop.
    expect([...image.center_crop(3, 3).data]).toEqual([0, 0, 0, 1, 2, 3, 4, 5, 6]);
    expect([...image.center_crop(4, 2).data]).toEqual([0, 1, 2, 3, 0, 4, 5, 6]);
    expect([...image.center_crop(2, 1).data]).toEqual([1, 2]);
  });

  test("refuses sizes that fit in no memory", () => {
    const image = new RawImage(Uint8Array.of(1, 2, 3), 1, 1, 3);
    const no_memory = expect.objectContaining({ code: "OUT_OF_MEMORY" });
    for (const [width, height] of [
      [1e15, 1],
      [1, 1e15],
    ] as const) {
      expect(() => image.resize(width, height)).toThrow(no_memory);
      expect(() => image.resize(width, height, { resample: "nearest" })).toThrow(no_memory);
      expect(() => image.center_crop(width, height)).toThrow(no_memory);
    }
  });

  test("clones, whoever made the pixels", async () => {
    for (const image of [new RawImage(Uint8Array.of(1), 1, 1, 1), await read("rgb.png")]) {
      const first = image.data[0] as number;
      image.clone().data[0] = first ^ 1;
      expect(image.data[0]).toBe(first);
    }
  });

  test.each([
    [new Uint8Array(5), 1, 2, 3],
    [new Uint8Array(0), 0, 0, 3],
    [new Uint8Array(3), 1.5, 2, 1],
    [new Uint8Array(3), -1, -1, 3],
    [new Uint8Array(5), 1, 1, 5],
    [[1, 2, 3], 1, 1, 3],
  ])("refuses pixels that don't fit the size: %j %d×%d×%d", (data, width, height, channels) => {
    expect(() => new RawImage(data as Uint8Array, width, height, channels as 3)).toThrowError(
      expect.objectContaining({ code: "INVALID_ARGUMENT" }),
    );
  });

  test.each([0, -3, 2.5, Number.NaN, "7"])("refuses to resize to %s pixels", (side) => {
    const image = new RawImage(Uint8Array.of(1), 1, 1, 1);
    expect(() => image.resize(side as number, 4)).toThrowError(
      expect.objectContaining({ code: "INVALID_ARGUMENT" }),
    );
  });

  test("refuses an unknown filter", () => {
    const image = new RawImage(Uint8Array.of(1), 1, 1, 1);
    expect(() => image.resize(2, 2, { resample: 9 as 1 })).toThrowError(/nearest, lanczos/);
  });
});
