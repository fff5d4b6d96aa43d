import { describe, expect, test } from "vitest";
import { RawImage } from "../../ts/image/raw_image.ts";
import { difference } from "../support/images.ts";
import { skipped } from "../support/skips.ts";
import { type FixtureTensor, read_tensors } from "../support/tensors.ts";

// Tiny files of the kinds that readers disagree on, and what Pillow reads from each (made by make_image_kinds.py).

const fixture = await read_tensors("test/fixtures/image_kinds/image_kinds.safetensors");
const bytes_of = (name: string) => (fixture.get(`file.${name}`) as FixtureTensor).data as Uint8Array;
const names = [...fixture.keys()].filter((key) => key.startsWith("file.")).map((key) => key.slice(5));
const is_browser = typeof document !== "undefined";

/** Decoders round each in their own way where an encoding is lossy. */
const TOLERANCE: Readonly<Record<string, number>> = { jpg: 2, avif: 2 };
const LAB_AND_YCBCR = ["lab.tif", "ycbcr.tif"];

/** How far an image is from Pillow's. */
async function distance(name: string): Promise<number> {
  const { dims, data } = fixture.get(`rgb.${name}`) as FixtureTensor;
  const image = (await RawImage.read(bytes_of(name))).rgb();
  expect([image.height, image.width, 3]).toEqual(dims);
  return difference(image.data, data as Uint8Array).max;
}

/** Where a browser repeats chroma that pixels of AVIF share, as Firefox does, instead of interpolating it. */
const repeats_chroma = is_browser && (await distance("420_full.avif")) > 2;
if (repeats_chroma) console.log("This browser repeats the chroma that pixels of AVIF files share.");
const SHARED_CHROMA = /^(42[02]_|animated|turned_).*avif$/;

/** The package's own readers are exact, which leaves nothing to runtimes. */
async function expect_as_pillow(name: string): Promise<void> {
  const extension = name.slice(name.lastIndexOf(".") + 1);
  const tolerance = repeats_chroma && SHARED_CHROMA.test(name) ? 32 : (TOLERANCE[extension] ?? 0);
  expect(await distance(name)).toBeLessThanOrEqual(tolerance);
}

describe("image files of all kinds are read as Pillow reads them", () => {
  // Chromium widens this file's alpha from 16…235, by which its colors must be divided; libavif doesn't.
  const left_out = is_browser ? ["premultiplied.avif"] : [];
  const readable = names.filter((name) => !name.endsWith(".tif") && !left_out.includes(name));
  test.each(readable)("%s", expect_as_pillow);
});

describe("TIFF", () => {
  const tiff = names.filter((name) => name.endsWith(".tif"));

  test
    .skipIf(skipped(is_browser, "browsers have no decoder of TIFF"))
    .each(tiff.filter((name) => !LAB_AND_YCBCR.includes(name)))("%s", expect_as_pillow);

  test.skipIf(skipped(is_browser, "browsers have no decoder of TIFF")).each(LAB_AND_YCBCR)(
    "%s is refused by name, since libtiff gives its colors as others",
    async (name) => {
      await expect(RawImage.read(bytes_of(name))).rejects.toMatchObject({
        code: "UNSUPPORTED",
        message: expect.stringMatching(/is a TIFF image of (CIE L\*a\*b\*|YCbCr) pixels.*convert it to RGB/),
      });
    },
  );

  test.skipIf(skipped(!is_browser, "only browsers have no decoder of TIFF"))(
    "is refused by name in browsers",
    async () => {
      await expect(RawImage.read(bytes_of("cmyk.tif"))).rejects.toMatchObject({
        code: "UNSUPPORTED",
        message: expect.stringMatching(/is a TIFF image.*convert it to PNG/),
      });
    },
  );
});

describe("of 16-bit grey the high byte is taken, where Pillow clips", () => {
  test.each([
    ["P5 2 1 65535\n", [0x12, 0x34, 0xff, 0xfe], [0x12, 0xff]],
    ["P5 2 1 1000\n", [0x03, 0xe8, 0x01, 0xf4], [0xff, 0x80]],
  ])("%s", async (header, samples, expected) => {
    const bytes = Uint8Array.from([...new TextEncoder().encode(header), ...samples]);
    expect([...(await RawImage.read(bytes)).data]).toEqual(expected);
  });
});

/** Where a chunk of a PNG or a word of another file begins. */
function find(bytes: Uint8Array, word: string): number {
  return new TextDecoder("latin1").decode(bytes).indexOf(word);
}

describe("a truncated file is refused, with the same message in every runtime", () => {
  const behind = (word: string, more: number) => (bytes: Uint8Array) => find(bytes, word) + more;

  test.each<[string, (bytes: Uint8Array) => number]>([
    ["xmp_6.jpg", (bytes) => bytes.length - 1],
    ["xmp_6.jpg", (bytes) => bytes.length - 2],
    ["xmp_6.jpg", (bytes) => bytes.length >> 1],
    ["exif_long.jpg", behind("Exif", 3)],
    ["no_end.png", (bytes) => bytes.length - 30],
    ["no_end.png", behind("IDAT", 0)],
    ["many_chunks.png", (bytes) => bytes.length >> 1],
    ["interlaced.gif", (bytes) => bytes.length - 8],
    ["interlaced.gif", (bytes) => bytes.length >> 1],
    ["24_bits.bmp", (bytes) => bytes.length - 4],
    ["rle8.bmp", (bytes) => bytes.length - 20],
    ["rgb.ppm", (bytes) => bytes.length - 1],
    ["plain.ppm", (bytes) => bytes.length >> 1],
  ])("%s", async (name, end) => {
    const bytes = bytes_of(name);
    await expect(RawImage.read(bytes.slice(0, end(bytes)))).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(/truncated/),
    });
  });

  test("also a JPEG whose thumbnail is whole", async () => {
    const whole = bytes_of("xmp_6.jpg");
    const thumbnail = bytes_of("fill_bytes.jpg");
    const length = thumbnail.length + 8;
    const exif = [
      0xff,
      0xe1,
      length >> 8,
      length & 255,
      ...new TextEncoder().encode("Exif\0\0"),
      ...thumbnail,
    ];
    const bytes = Uint8Array.from([...whole.slice(0, 2), ...exif, ...whole.slice(2, -40)]);
    await expect(RawImage.read(bytes)).rejects.toMatchObject({ code: "INVALID_IMAGE" });
  });
});

/** A grey PNG of three pixels, stored as they are, whose chunk has a wrong checksum. `tail` ends its zlib stream. */
function stored_png(pixels: readonly number[], tail: readonly number[]): Uint8Array {
  const chunk = (type: string, data: readonly number[], checksum: readonly number[]) => [
    ...[0, 0, 0, data.length],
    ...new TextEncoder().encode(type),
    ...data,
    ...checksum,
  ];
  return Uint8Array.from([
    ...[0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a],
    ...chunk("IHDR", [0, 0, 0, 3, 0, 0, 0, 1, 8, 0, 0, 0, 0], [0x3e, 0x8b, 0x4b, 0x68]),
    ...chunk("IDAT", [0x78, 1, 1, 4, 0, 0xfb, 0xff, 0, ...pixels, ...tail], [1, 2, 3, 4]),
    ...chunk("IEND", [], [0xae, 0x42, 0x60, 0x82]),
  ]);
}

describe("PNG pixels whose chunk's checksum is wrong", () => {
  // Of the filter's number, 0, and the pixels 10, 20 and 30.
  const adler = [0, 0x68, 0, 0x3d];

  test.each([
    ["and nothing behind it", adler],
    ["and junk behind it", [...adler, 1, 2, 3]],
  ])("are read where the checksum of all pixels is right, %s", async (_, tail) => {
    const { data } = await RawImage.read(stored_png([10, 20, 30], tail));
    expect([...data]).toEqual([10, 20, 30]);
  });

  test.each([
    ["a pixel is another", [10, 21, 30], adler],
    ["the checksum is another", [10, 20, 30], [0, 0x68, 0, 0x3e]],
    ["a pixel is another and junk follows", [10, 20, 31], [...adler, 1, 2, 3]],
  ])("are refused where %s", async (_, pixels, tail) => {
    await expect(RawImage.read(stored_png(pixels, tail))).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(/is a damaged PNG file: its pixels don't fit their checksum/),
    });
  });
});

test("a BMP's run beyond its row's end is dropped, as by Pillow", async () => {
  const bytes = new Uint8Array(54 + 1024 + 8);
  const view = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]);
  // The pixels' place, the header's size, 2 × 1 pixels, a plane of 8 bits, RLE8.
  for (const [at, value] of [
    [10, 1078],
    [14, 40],
    [18, 2],
    [22, 1],
    [30, 1],
  ] as const)
    view.setUint32(at, value, true);
  view.setUint16(26, 1, true);
  view.setUint16(28, 8, true);
  for (let i = 0; i < 256; i++) bytes.fill(i, 54 + 4 * i, 57 + 4 * i);
  bytes.set([255, 7, 255, 8, 1, 9, 0, 1], 1078);
  expect([...(await RawImage.read(bytes)).data]).toEqual([7, 7, 7, 7, 7, 7]);
});

describe("a damaged file is refused", () => {
  /** The file with other bytes at a word. */
  function changed(name: string, word: string, offset: number, ...values: number[]): Uint8Array {
    const bytes = bytes_of(name).slice();
    bytes.set(values, find(bytes, word) + offset);
    return bytes;
  }

  test.each<[string, Uint8Array, RegExp]>([
    [
      "a PNG whose header's checksum is wrong",
      changed("no_end.png", "IHDR", 17, 1, 2, 3, 4),
      /checksum of its chunk IHDR/,
    ],
    [
      "a PNG of an unknown kind of pixel",
      changed("no_end.png", "IHDR", 13, 5),
      /checksum|pixels of color type/,
    ],
    ["a PNG whose pixels can't be unpacked", changed("no_end.png", "IDAT", 6, 0xff, 0xff, 0xff), /damaged/],
    [
      "a GIF whose pixels can't be unpacked",
      changed("noise.gif", ",\0\0\0\0", 14, 0xff, 0xff),
      /damaged GIF/,
    ],
    ["a PNM of an impossible maximum", new TextEncoder().encode("P5 1 1 70000\n\0\0"), /from 1 to 65535/],
    ["a PNM of no number", new TextEncoder().encode("P5 one 1 255\n\0"), /no number at byte 3/],
    [
      "a PNM of values above its maximum",
      new TextEncoder().encode("P2 1 1 7 9"),
      /a value above its maximum, 7/,
    ],
  ])("%s", async (_, bytes, message) => {
    await expect(RawImage.read(bytes)).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(message),
    });
  });
});
