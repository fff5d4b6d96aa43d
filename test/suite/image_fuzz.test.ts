import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { VitMsnError } from "../../ts/errors.ts";
import { RawImage } from "../../ts/image/raw_image.ts";
import { RESAMPLE, type ResampleName } from "../../ts/image/resize.ts";
import { read_file } from "../support/files.ts";

const FOLDER = "test/fixtures/image_files";
const runs = Number(globalThis.process?.env?.FUZZ_RUNS ?? 60);
const SOURCES = [
  "rgb.png",
  "palette_transparent.png",
  "turned.png",
  "photo.jpg",
  "progressive.jpg",
  "orientation_6.jpg",
  "cmyk.jpg",
  "lossless.webp",
  "turned_transparent.webp",
  "animated.gif",
  "photo.avif",
];

/** A change of some bytes: most in the first hundred, where headers are. */
const edit = fc.record({
  at: fc.oneof(fc.nat(100), fc.nat(3000)),
  bytes: fc.oneof(
    fc.uint8Array({ minLength: 1, maxLength: 4 }),
    fc.constantFrom(
      Uint8Array.of(0xff, 0xff, 0xff, 0xff),
      Uint8Array.of(0, 0, 0, 0),
      Uint8Array.of(0x7f, 0xff, 0xff, 0xff),
    ),
  ),
});

function change(bytes: Uint8Array, edits: { at: number; bytes: Uint8Array }[], keep: number): Uint8Array {
  const changed = bytes.slice(0, Math.ceil(bytes.length * keep));
  for (const { at, bytes } of edits) {
    for (let i = 0; i < bytes.length; i++) {
      if (at + i < changed.length) changed[at + i] = bytes[i] as number;
    }
  }
  return changed;
}

async function expect_image_or_typed_error(bytes: Uint8Array): Promise<void> {
  try {
    const image = await RawImage.read(bytes, { max_pixels: 1_000_000 });
    expect(image.data.length).toBe(image.width * image.height * image.channels);
  } catch (error) {
    if (!(error instanceof VitMsnError)) throw error;
    expect(["INVALID_IMAGE", "UNSUPPORTED"]).toContain(error.code);
  }
}

describe("mutated bytes give an image or a typed error", () => {
  test.each(SOURCES)("%s", { timeout: 3_600_000 }, async (name) => {
    const whole = await read_file(`${FOLDER}/${name}`);
    const keep = fc.oneof(
      { weight: 4, arbitrary: fc.constant(1) },
      fc.double({ min: 0, max: 1, noNaN: true }),
    );
    const property = fc.asyncProperty(fc.array(edit, { maxLength: 6 }), keep, async (edits, part) => {
      await expect_image_or_typed_error(change(whole, edits, part));
    });
    await fc.assert(property, { numRuns: runs });
  });

  test("random bytes after a signature", { timeout: 3_600_000 }, async () => {
    const signatures = [
      "\x89PNG\r\n\x1a\n",
      "\xff\xd8\xff",
      "RIFF\x40\0\0\0WEBPVP8X",
      "GIF89a",
      "\0\0\0\x20ftypavif",
      "BM",
      "II*\0",
    ];
    const start = fc.constantFrom(...signatures).map((text) => Array.from(text, (c) => c.charCodeAt(0)));
    const property = fc.asyncProperty(start, fc.uint8Array({ maxLength: 200 }), async (signature, rest) => {
      await expect_image_or_typed_error(Uint8Array.from([...signature, ...rest]));
    });
    await fc.assert(property, { numRuns: runs * 2 });
  });
});

describe("resizing", () => {
  test("keeps an image of one colour, whatever the size and filter", () => {
    const side = fc.integer({ min: 1, max: 60 });
    const filter = fc.constantFrom(...(Object.keys(RESAMPLE) as ResampleName[]));
    const property = fc.property(
      side,
      side,
      side,
      side,
      fc.nat(255),
      filter,
      (w, h, to_w, to_h, value, resample) => {
        const image = new RawImage(new Uint8Array(w * h * 3).fill(value), w, h, 3);
        const resized = image.resize(to_w, to_h, { resample });
        expect(resized.data.every((x) => x === value)).toBe(true);
      },
    );
    fc.assert(property, { numRuns: runs * 3 });
  });
});
