import { beforeAll, describe, expect, test } from "vitest";
import { RawImage } from "../../ts/image/raw_image.ts";
import { read_file } from "../support/files.ts";
import { difference } from "../support/images.ts";
import { type FixtureTensor, read_tensors } from "../support/tensors.ts";

const FOLDER = "test/fixtures/image_files";
let expected: Map<string, FixtureTensor>;

beforeAll(async () => {
  expected = await read_tensors(`${FOLDER}/expected.safetensors`);
});

async function read(name: string): Promise<RawImage> {
  return RawImage.read(await read_file(`${FOLDER}/${name}`));
}

function expect_like_pillow(image: RawImage, name: string, tolerance = 0): void {
  const { dims, data } = expected.get(`rgb.${name}`) as FixtureTensor;
  expect([image.height, image.width, 3]).toEqual(dims);
  expect(difference(image.rgb().data, data as Uint8Array).max).toBeLessThanOrEqual(tolerance);
}

/** The first chunk, VP8X, has 18 bytes. */
function without_webp_header(bytes: Uint8Array): Uint8Array {
  const rest = Uint8Array.from([...bytes.subarray(0, 12), ...bytes.subarray(30)]);
  new DataView(rest.buffer).setUint32(4, rest.length - 8, true);
  return rest;
}

/** File, and the channels it has. */
const LOSSLESS: [string, number][] = [
  ["rgb.png", 3],
  ["grey.png", 1],
  ["grey_alpha.png", 4],
  ["rgba.png", 4],
  ["palette.png", 3],
  ["palette_transparent.png", 4],
  ["colour_key.png", 4],
  ["one_bit.png", 1],
  ["grey_16.png", 1],
  ["rgb_16.png", 3],
  ["rgba_16.png", 4],
  ["interlaced.png", 3],
  ["one_pixel.png", 3],
  ["wide.png", 3],
  ["lossless.webp", 3],
  ["transparent.webp", 4],
  ["still.gif", 3],
  ["animated.gif", 3],
  ["transparent.gif", 4],
];

describe("lossless images are read as Pillow reads them", () => {
  test.each(LOSSLESS)("%s", async (name, channels) => {
    const image = await read(name);
    expect(image.channels).toBe(channels);
    expect_like_pillow(image, name);
  });
});

test("an image of many tiles keeps the colour of its transparent pixels", async () => {
  const image = await read("wide_transparent.png");
  expect([image.width, image.height, image.channels]).toEqual([9000, 2, 4]);
  expect_like_pillow(image, "wide_transparent.png");
});

describe("lossy images are read as Pillow reads them", () => {
  // Decoders may round the YCbCr transform and upsample chroma each in their own way.
  test.each([
    ["photo.jpg", 3, 2],
    ["progressive.jpg", 3, 2],
    ["grey.jpg", 1, 1],
    ["subsampled.jpg", 3, 4],
    ["cmyk.jpg", 3, 2],
    ["lossy.webp", 3, 4],
    ["photo.avif", 3, 3],
    ["transparent.avif", 4, 3],
  ])("%s", async (name, channels, tolerance) => {
    const image = await read(name);
    expect(image.channels).toBe(channels);
    expect_like_pillow(image, name, tolerance);
  });
});

describe("images are turned upright", () => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])("JPEG with EXIF orientation %i", async (orientation) => {
    const name = `orientation_${orientation}.jpg`;
    expect_like_pillow(await read(name), name, 2);
  });

  test.each([1, 2, 3, 4, 5, 6, 7, 8])("WebP with EXIF orientation %i", async (orientation) => {
    const name = `orientation_${orientation}.webp`;
    expect_like_pillow(await read(name), name);
  });

  test("WebP whose EXIF follows a chunk of odd length", async () => {
    const bytes = await read_file(`${FOLDER}/orientation_6.webp`);
    const text = new TextDecoder("latin1").decode(bytes);
    const at = text.indexOf("EXIF");
    // A chunk that decoders skip: three bytes, and one of padding that its length doesn't count.
    const odd = Uint8Array.of(...new TextEncoder().encode("odd "), 3, 0, 0, 0, 1, 2, 3, 0);
    const changed = Uint8Array.from([...bytes.subarray(0, at), ...odd, ...bytes.subarray(at)]);
    new DataView(changed.buffer).setUint32(4, changed.length - 8, true);
    expect_like_pillow(await RawImage.read(changed), "orientation_6.webp");
  });

  test.each([
    ["whose header's flags don't announce it", (bytes: Uint8Array) => bytes.with(20, 0)],
    ["without that header", without_webp_header],
  ])("but not a WebP %s", async (_, change) => {
    const image = await RawImage.read(change(await read_file(`${FOLDER}/orientation_6.webp`)));
    expect_like_pillow(image, "orientation_1.webp");
  });

  test.each([
    ["turned.png", 0],
    ["turned_transparent.png", 0],
    ["turned_transparent.webp", 0],
    ["turned.avif", 3],
  ])("%s", async (name, tolerance) => {
    expect_like_pillow(await read(name), name, tolerance);
  });
});

describe("colour profiles are ignored, as Pillow ignores them", () => {
  test.each([
    ["profile.png", 0],
    ["profile.jpg", 2],
    ["gamma.png", 0],
  ])("%s", async (name, tolerance) => {
    expect_like_pillow(await read(name), name, tolerance);
  });
});
