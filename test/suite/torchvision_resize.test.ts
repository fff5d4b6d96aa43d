import { RawImage, type ResampleName, ViTImageProcessor } from "vit-msn";
import { describe, expect, it, test } from "vitest";
import { read_file } from "../support/files.ts";
import { error_of } from "../support/rejections.ts";

interface Case {
  /** [width, height, channels] */
  source: [number, number, 1 | 3 | 4];
  /** [width, height] */
  size: [number, number];
  resample: ResampleName;
  sum: number;
  samples: [number, number][];
}
const { cases, pixel_values } = JSON.parse(
  new TextDecoder().decode(await read_file("test/fixtures/torchvision_resize.json")),
) as { cases: Case[]; pixel_values: [number, number][] };

/** The same pixels as in test/reference/make_torchvision_resize.py. */
function image_of([width, height, channels]: Case["source"]): RawImage {
  const data = Uint8ClampedArray.from({ length: width * height * channels }, (_, i) => {
    const [c, p] = [i % channels, Math.floor(i / channels)];
    const [x, y] = [p % width, Math.floor(p / width)];
    const checks = ((Math.floor(x / 5) + Math.floor(y / 3)) % 2) * 128;
    return (x * x * 3 + y * 13 + c * 50 + x * y * 7 + checks) % 256;
  });
  return new RawImage(data, width, height, channels);
}

/** Resizes and does nothing else. */
function resizer({ size: [width, height], resample }: Pick<Case, "size" | "resample">, backend: string) {
  const settings = { size: { width, height }, resample, do_normalize: false, do_rescale: false };
  return new ViTImageProcessor({ ...settings, do_convert_rgb: false, backend: backend as "pil" });
}

describe('backend "torchvision"', () => {
  test.each(cases)("resizes $source to $size, $resample, as torchvision does", async (expected) => {
    const output = await resizer(expected, "torchvision")(image_of(expected.source));
    const [, channels, height, width] = output.pixel_values.dims as [number, number, number, number];
    expect([width, height]).toEqual(expected.size);
    const plane = width * height;
    const bytes = Array.from({ length: plane * channels }, (_, i) => {
      return output.pixel_values.data[(i % channels) * plane + Math.floor(i / channels)] as number;
    });
    expect(expected.samples.map(([at]) => [at, bytes[at]])).toEqual(expected.samples);
    expect(bytes.reduce((a, b) => a + b, 0)).toBe(expected.sum);
  });

  it("gives transformers' pixel_values", async () => {
    const processor = new ViTImageProcessor({ size: 24 });
    const output = await processor(image_of([61, 47, 3]), { backend: "torchvision" });
    for (const [at, value] of pixel_values) expect(output.pixel_values.data[at]).toBeCloseTo(value, 5);
  });

  it("is a setting like the others, but none of a file that transformers reads", async () => {
    const processor = new ViTImageProcessor({ size: 24 });
    expect(processor.backend).toBe("pil");
    const image = image_of([61, 47, 3]);
    const given = await processor(image, { backend: "torchvision" });
    processor.backend = "torchvision";
    const set = await processor(image);
    expect(set.pixel_values.data).toEqual(given.pixel_values.data);
    processor.backend = "pil";
    expect((await processor(image)).pixel_values.data).not.toEqual(set.pixel_values.data);
    expect(JSON.parse(processor.to_json_string())).not.toHaveProperty("backend");
  });

  it("refuses filters that torchvision doesn't have, and other backends", async () => {
    for (const resample of ["box", "hamming"] as const) {
      const error = await error_of(resizer({ size: [9, 9], resample }, "torchvision")(image_of([30, 20, 3])));
      expect(error.code).toBe("INVALID_ARGUMENT");
      expect(error.message).toContain('backend "pil"');
    }
    const unknown = await error_of(
      resizer({ size: [9, 9], resample: "bicubic" }, "opencv")(image_of([30, 20, 3])),
    );
    expect(unknown.message).toContain('backend must be "pil" or "torchvision"; it is "opencv"');
  });
});
