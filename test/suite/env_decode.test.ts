import { type DecodedImage, env, type ImageToDecode, RawImage, VitMsnError } from "vit-msn";
import { afterEach, describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { error_of } from "../support/rejections.ts";

// env.decode: a decoder of the host's own.

afterEach(() => {
  env.decode = undefined;
});

const image = (name: string) => read_file(`test/fixtures/image_files/${name}`);

/** A decoder that gives the image as it is stored, as those of libraries do: for that, the runtime reads it unturned. */
async function decode_unturned(bytes: Uint8Array): Promise<DecodedImage> {
  const decode = env.decode;
  env.decode = undefined;
  try {
    return (await RawImage.read(bytes.slice())).rgba();
  } finally {
    env.decode = decode;
  }
}

describe("env.decode", () => {
  test.each([
    ..."12345678".split("").map((n) => `orientation_${n}.jpg`),
    ..."12345678".split("").map((n) => `orientation_${n}.webp`),
    "photo.jpg",
    "grey.jpg",
    "transparent.webp",
  ])("its pixels are turned upright and get the file's channels: %s", async (name) => {
    const bytes = await image(name);
    const expected = await RawImage.read(bytes);
    const asked: ImageToDecode[] = [];
    env.decode = async (file, about) => {
      asked.push(about);
      return decode_unturned(file);
    };
    const read = await RawImage.read(bytes);
    expect(asked).toHaveLength(1);
    expect(asked[0]).toMatchObject({ format: name.endsWith("jpg") ? "JPEG" : "WebP", name: "The image" });
    expect([read.width, read.height, read.channels]).toEqual([
      expected.width,
      expected.height,
      expected.channels,
    ]);
    expect(read.data).toEqual(expected.data);
  });

  test("gives 1 to 4 bytes a pixel", async () => {
    const bytes = await image("photo.jpg");
    for (const channels of [1, 2, 3, 4]) {
      env.decode = () => ({ data: new Uint8ClampedArray(6 * channels).fill(7), width: 3, height: 2 });
      expect([...(await RawImage.read(bytes)).data]).toEqual(new Array(18).fill(7));
    }
  });

  test.each<[string, () => unknown, string, RegExp]>([
    [
      "fails",
      () => Promise.reject(new Error("bad marker")),
      "INVALID_IMAGE",
      /env\.decode as JPEG: bad marker/,
    ],
    ["gives nothing", () => undefined, "INVALID_ARGUMENT", /must return \{ data, width, height \}/],
    [
      "gives too little",
      () => ({ data: new Uint8Array(5), width: 2, height: 2 }),
      "INVALID_ARGUMENT",
      /5 bytes for 2×2/,
    ],
    [
      "gives no size",
      () => ({ data: new Uint8Array(0), width: 0, height: 0 }),
      "INVALID_ARGUMENT",
      /0 bytes for 0×0/,
    ],
  ])("that %s is a typed error", async (_, decode, code, message) => {
    env.decode = decode as typeof env.decode;
    const error = await error_of(RawImage.read(await image("photo.jpg")));
    expect(error).toBeInstanceOf(VitMsnError);
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
  });

  test("is asked only for what is an image, and not beyond max_pixels", async () => {
    env.decode = () => {
      throw new Error("asked");
    };
    const bytes = await image("photo.jpg");
    expect(await error_of(RawImage.read(new Uint8Array([1, 2, 3])))).toMatchObject({ code: "INVALID_IMAGE" });
    const error = await error_of(RawImage.read(bytes, { max_pixels: 10 }));
    expect(error).toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringContaining("limit of 10 pixels"),
    });
  });

  test("gets the signal of an abort", async () => {
    const controller = new AbortController();
    env.decode = (_, { signal }) =>
      new Promise((_resolve, reject) =>
        signal?.addEventListener("abort", () => reject(new Error("stopped"))),
      );
    const reading = error_of(RawImage.read(await image("photo.jpg"), { signal: controller.signal }));
    controller.abort();
    expect(await reading).toMatchObject({ code: "ABORTED" });
  });
});
