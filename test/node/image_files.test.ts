import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { crc32, deflateSync } from "node:zlib";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { prepare_avif } from "../../ts/image/avif.ts";
import { ViTImageProcessor } from "../../ts/image/image_processing_vit.ts";
import { RawImage } from "../../ts/image/raw_image.ts";
import { start } from "../support/cli.ts";

const folder = fileURLToPath(new URL("../fixtures/image_files/", import.meta.url));
const path = join(folder, "rgb.png");
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "vit-msn-image-"));
});
afterAll(() => rm(directory, { recursive: true }));

describe("RawImage.read takes files", () => {
  test("by path, file: URL and Buffer", async () => {
    const image = await RawImage.read(path);
    expect([image.size, image.channels]).toEqual([[37, 23], 3]);
    expect(await RawImage.read(pathToFileURL(path))).toEqual(image);
    expect(await RawImage.read(pathToFileURL(path).href)).toEqual(image);
    expect(await RawImage.read(await readFile(path))).toEqual(image);
  });

  test("by http, from a real server", async () => {
    const server: Server = createServer(async (_, response) => response.end(await readFile(path)));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    expect(await RawImage.read(`http://127.0.0.1:${port}/a.png`)).toEqual(await RawImage.read(path));
    server.close();
  });

  test("and reports what is wrong with those it can't read", async () => {
    await expect(RawImage.read("no/such.png")).rejects.toMatchObject({
      code: "NOT_FOUND",
      message: expect.stringContaining("no/such.png"),
    });
    await expect(RawImage.read(folder)).rejects.toMatchObject({ code: "IO" });
    const page = join(directory, "page.png");
    await writeFile(page, "<!doctype html><p>Sign in</p>");
    await expect(RawImage.read(page)).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(/page\.png is an HTML page/),
    });
    await expect(RawImage.read(path, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: "ABORTED",
    });
  });
});

test("a HEIC file names the optional package that decodes it, which isn't installed here", async () => {
  const { code, stderr } = await start(["classify", "test/frameworks/jest/photo.heic"]).finished;
  expect([code, stderr]).toEqual([
    1,
    expect.stringMatching(
      /photo\.heic is a HEIC image, which needs .*`npm install libheif-js`.*\[UNSUPPORTED\]\n$/,
    ),
  ]);
});

describe("where sharp can't be loaded, the command line reports why and what to do", () => {
  const reason =
    'Could not load the "sharp" module using the linux-x64 runtime\nPossible solutions:\n- npm install --os=linux --cpu=x64 sharp';

  test.each([
    [
      "it isn't installed",
      "throw Object.assign(new Error(\"Cannot find package 'sharp' imported from /x\"), { code: 'ERR_MODULE_NOT_FOUND' })",
      "which isn't installed; run `npm install sharp`.",
    ],
    [
      "it is installed for another platform",
      `return { url: "data:text/javascript," + encodeURIComponent(${JSON.stringify(`throw new Error(${JSON.stringify(reason)})`)}), shortCircuit: true }`,
      `which is installed but can't be loaded: ${reason.replaceAll("\n", " ")}`,
    ],
  ])("%s", async (_, resolve_sharp, message) => {
    const hooks = `export async function resolve(name, context, next) { if (name === "sharp") { ${resolve_sharp}; } return next(name, context); }`;
    const as_url = (code: string) => `data:text/javascript,${encodeURIComponent(code)}`;
    const register = `import { register } from "node:module"; register(${JSON.stringify(as_url(hooks))});`;
    const { code, stderr } = await start(["classify", path], { node: ["--import", as_url(register)] })
      .finished;
    expect(code).toBe(1);
    expect(stderr).toContain(message);
  });
});

describe("a TIFF's compression that sharp lacks is named", () => {
  /** A directory of 8×8 grey pixels. */
  const tiff = (compression: number, is_little_endian: boolean) => {
    const tags = [
      [256, 8],
      [257, 8],
      [258, 8],
      [259, compression],
      [262, 1],
      [273, 8],
      [278, 8],
      [279, 64],
    ] as const;
    const view = new DataView(new ArrayBuffer(200));
    const set = (at: number, value: number) => view.setUint16(at, value, is_little_endian);
    set(0, is_little_endian ? 0x4949 : 0x4d4d);
    set(2, 42);
    view.setUint32(4, 72, is_little_endian);
    set(72, tags.length);
    for (const [i, [tag, value]] of tags.entries()) {
      const at = 74 + 12 * i;
      set(at, tag);
      set(at + 2, 3);
      view.setUint32(at + 4, 1, is_little_endian);
      set(at + 8, value);
    }
    return new Uint8Array(view.buffer);
  };

  test.each([
    [50000, "Zstandard"],
    [34925, "LZMA"],
    [34712, "JPEG 2000"],
    [9999, "method 9999"],
  ])("%i", async (compression, found) => {
    for (const is_little_endian of [true, false])
      await expect(RawImage.read(tiff(compression, is_little_endian))).rejects.toMatchObject({
        code: "UNSUPPORTED",
        message: expect.stringContaining(
          `is a TIFF image compressed by ${found}, which isn't supported; save it with`,
        ),
      });
  });

  test("others are read", async () => {
    expect((await RawImage.read(tiff(1, true))).width).toBe(8);
    const sharp = (await import("sharp")).default;
    const image = sharp({ create: { width: 9, height: 8, channels: 3, background: "red" } });
    for (const compression of ["jpeg", "deflate", "packbits", "lzw", "webp"] as const)
      expect((await RawImage.read(await image.clone().tiff({ compression }).toBuffer())).width).toBe(9);
  });
});

describe("an SVG drawing never reaches libvips, which would read it", () => {
  const svg =
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><rect width="40" height="30" fill="red"/></svg>';
  const latin1 = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));

  test.each([
    ["as it is", svg],
    ["with a byte order mark", `\xef\xbb\xbf${svg}`],
    ["whose first comment is an ftyp box of AVIF", `<!--ftypAAAABBBBavif-->${svg}`],
    ["whose first comment names AVIF as its brand", `<!--ftypavifAAAAavif-->${svg}`],
    ["behind a byte that a box's size may begin with", `\0\0\0\x19ftypavif\0\0\0\0avif${svg}`],
    ["behind spaces", ` \n${svg}`],
    ["behind a box of AVIF", `\0\0\0\x18ftypavif\0\0\0\0avifmif1<!-- -->${svg}`],
    ["behind a box of another brand", `\0\0\0\x18ftypmif1\0\0\0\0avifmif1<!-- -->${svg}`],
    ["in the clothes of a WebP", `RIFF\0\0\0\0WEBPVP8 ${svg}`],
    ["in the clothes of a TIFF", `II*\0${svg}`],
  ])("%s", async (_, text) => {
    await expect(RawImage.read(latin1(text))).rejects.toMatchObject({
      code: expect.stringMatching(/^(UNSUPPORTED|INVALID_IMAGE)$/),
      message: expect.not.stringMatching(/libvips takes it for|svgload/),
    });
  });

  test("and in the command line's process libvips reads none at all", async () => {
    const hook = `process.on("exit", () => console.log(process.env.VIPS_BLOCK_UNTRUSTED));`;
    const { stdout } = await start(["--version"], {
      node: ["--import", `data:text/javascript,${encodeURIComponent(hook)}`],
    }).finished;
    expect(stdout).toMatch(/^1$/m);
  });
});

describe("an abort doesn't wait for a decoder", () => {
  const until_started = (started: unknown[], count: number) =>
    vi.waitFor(() => expect(started).toHaveLength(count), { timeout: 120_000 });

  /** Runs `body` with a substitute for sharp whose decoders end when the functions in `started` are called. */
  async function with_slow_sharp(
    body: (
      read: typeof RawImage.read,
      started: (() => void)[],
      decoding: { format: string },
    ) => Promise<void>,
    format = "png",
  ) {
    const decoding = { format };
    const started: (() => void)[] = [];
    const { data, width, height } = (await RawImage.read(path)).rgb();
    const decoded = { data, info: { width, height, channels: 3 } };
    const image = {
      timeout: () => image,
      metadata: async () => decoding,
      raw: () => image,
      toBuffer: () => new Promise((resolve) => started.push(() => resolve(decoded))),
    };
    vi.doMock("sharp", () => ({ default: () => image }));
    vi.resetModules();
    try {
      const module = await import("../../ts/image/raw_image.ts");
      await body((input, options) => module.RawImage.read(input, options), started, decoding);
    } finally {
      vi.doUnmock("sharp");
    }
  }

  test("one that never ends is left alone", () =>
    with_slow_sharp(async (read, started) => {
      const controller = new AbortController();
      const reading = read(path, { signal: controller.signal });
      await until_started(started, 1);
      controller.abort();
      await expect(reading).rejects.toMatchObject({ code: "ABORTED" });
    }));

  test("AVIF files, which can't be interrupted, leave a turn to others", () =>
    with_slow_sharp(async (read, started, decoding) => {
      const avif = [1, 2, 3].map(() => read(join(folder, "photo.avif")));
      await until_started(started, 2);
      decoding.format = "jpeg";
      const jpeg = read(join(folder, "photo.jpg"));
      await until_started(started, 3);
      started.pop()?.();
      expect((await jpeg).size).toEqual([37, 23]);
      decoding.format = "heif";
      for (const end of started.splice(0)) end();
      await until_started(started, 1);
      started[0]?.();
      await Promise.all(avif);
    }, "heif"));

  test("of those that wait for their turn, those that were aborted lose it", () =>
    with_slow_sharp(async (read, started) => {
      const first = [read(path), read(path), read(path)];
      await until_started(started, 3);
      const controller = new AbortController();
      const aborted = read(path, { signal: controller.signal });
      const last = read(path);
      controller.abort();
      await expect(aborted).rejects.toMatchObject({ code: "ABORTED" });
      expect(started).toHaveLength(3);
      for (const end of started.splice(0)) end();
      await Promise.all(first);
      await until_started(started, 1);
      started[0]?.();
      expect((await last).size).toEqual([37, 23]);
    }));
});

test("a processor is saved to a folder and loaded from it", async () => {
  const processor = new ViTImageProcessor({
    image_processor_type: "ViTImageProcessor",
    size: 32,
    image_mean: [0.1, 0.2, 0.3],
    note: "kept",
  });
  await processor.save_pretrained(directory);
  const again = await ViTImageProcessor.from_pretrained(directory);
  expect(again.to_dict()).toEqual(processor.to_dict());
  expect(JSON.parse(await readFile(join(directory, "preprocessor_config.json"), "utf8"))).toMatchObject({
    image_processor_type: "ViTImageProcessor",
    note: "kept",
  });
});

/** A chunk of a PNG file. */
function png_chunk(type: string, data: Uint8Array): Buffer {
  const chunk = Buffer.alloc(12 + data.length);
  chunk.writeUInt32BE(data.length);
  chunk.write(type, 4, "latin1");
  chunk.set(data, 8);
  chunk.writeUInt32BE(crc32(chunk.subarray(4, -4)), chunk.length - 4);
  return chunk;
}

/** A PNG file of one grey pixel, with more before the pixel. */
function png_with(...more: Buffer[]): Buffer {
  return Buffer.concat([
    Buffer.from("\x89PNG\r\n\x1a\n", "latin1"),
    png_chunk("IHDR", Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0)),
    ...more,
    png_chunk("IDAT", deflateSync(Buffer.alloc(2))),
    png_chunk("IEND", new Uint8Array(0)),
  ]);
}

describe("a file of very many parts needs no memory for each", () => {
  const COUNT = 600_000;
  const many = (part: Buffer) => Buffer.alloc(part.length * COUNT, part);
  const pixel = sharp({ create: { width: 1, height: 1, channels: 3, background: "red" } });

  test.each<[string, () => Buffer | Promise<Buffer>]>([
    ["a PNG of empty chunks of pixels", () => png_with(many(png_chunk("IDAT", new Uint8Array(0))))],
    ["a PNG of empty texts", () => png_with(many(png_chunk("tEXt", new Uint8Array(0))))],
    ["a PNG of empty EXIF", () => png_with(many(png_chunk("eXIf", new Uint8Array(0))))],
    [
      "a PNG of a long profile",
      () => {
        const head = Buffer.from("Raw profile type exif\0\nexif\n 8\n");
        return png_with(png_chunk("tEXt", Buffer.concat([head, many(Buffer.from("abcdef0123456789"))])));
      },
    ],
    [
      "a JPEG of empty EXIF",
      async () => {
        const file = await pixel.clone().jpeg().toBuffer();
        const exif = many(Buffer.from("\xff\xe1\0\x08Exif\0\0", "latin1"));
        return Buffer.concat([file.subarray(0, 2), exif, file.subarray(2)]);
      },
    ],
    [
      "a WebP of empty EXIF",
      async () => {
        const file = Buffer.concat([
          await pixel.clone().webp().withMetadata({ orientation: 1 }).toBuffer(),
          many(Buffer.from("EXIF\0\0\0\0")),
        ]);
        file.writeUInt32LE(file.length - 8, 4);
        return file;
      },
    ],
  ])("%s", { timeout: 120_000 }, async (_, make) => {
    const code = `const { parentPort, workerData } = require("node:worker_threads");
      import(workerData.module)
        .then(({ RawImage }) => RawImage.read(workerData.bytes))
        .then(({ size }) => parentPort.postMessage(size));`;
    const module = new URL("../../dist/index.node.js", import.meta.url).href;
    const workerData = { module, bytes: new Uint8Array(await make()) };
    const resourceLimits = { maxOldGenerationSizeMb: 32 };
    const worker = new Worker(code, { eval: true, workerData, resourceLimits });
    const size = await new Promise((resolve, reject) => {
      worker.once("message", resolve);
      worker.once("error", reject);
    });
    await worker.terminate();
    expect(size).toEqual([1, 1]);
  });
});

test("a PNG whose checksum is wrong is turned upright like any other", async () => {
  const create = { width: 4, height: 2, channels: 3, background: "red" } as const;
  const bytes = await sharp({ create }).png().withMetadata({ orientation: 6 }).toBuffer();
  const at = bytes.indexOf("IDAT");
  const checksum_at = at + 4 + bytes.readUInt32BE(at - 4);
  bytes[checksum_at] = (bytes[checksum_at] as number) ^ 1;
  expect((await RawImage.read(bytes)).size).toEqual([2, 4]);
});

test("a PNG's second header can't claim a size that the first was not checked for", async () => {
  const short = png_chunk("IHDR", Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0));
  const huge = png_chunk("IHDR", Uint8Array.of(255, 0, 0, 0, 255, 0, 0, 0, 8, 0, 0, 0, 0));
  const whole = png_with(huge);
  const bytes = Buffer.concat([whole.subarray(0, 8), short, whole.subarray(8 + 25)]);
  await expect(RawImage.read(bytes)).rejects.toMatchObject({
    code: "INVALID_IMAGE",
    message: expect.stringMatching(/its header is too short/),
  });
});

test("an AVIF file whose list of turned items ends within a number is taken as it is", () => {
  const box = (type: string, ...data: Uint8Array[]) => {
    const content = Buffer.concat(data);
    const head = Buffer.alloc(8);
    head.writeUInt32BE(8 + content.length);
    head.write(type, 4, "latin1");
    return Buffer.concat([head, content]);
  };
  const color = box("colr", Buffer.from("nclx\0\x01\0\x01\0\x01\x80", "latin1"));
  const others = Array.from({ length: 253 }, () => box("free"));
  const properties = [
    color,
    box("av1C", Uint8Array.of(0x81, 0, 0, 0)),
    ...others,
    box("irot", Uint8Array.of(1)),
  ];
  // Numbers of two bytes; item 1 has property 1 and the first byte of 256, which is the rotation.
  const items = box("ipma", Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 2, 0, 1, 1));
  const bytes = box("meta", new Uint8Array(4), box("iprp", box("ipco", ...properties), items));
  expect(prepare_avif(new Uint8Array(bytes))).toMatchObject({ orientation: 1, planes: { matrix: 1 } });
});
