import { afterEach, describe, expect, test, vi } from "vitest";
import { env } from "../../ts/env.ts";
import { RawImage } from "../../ts/image/raw_image.ts";
import { read_file } from "../support/files.ts";

const FOLDER = "test/fixtures/image_files";
const png = await read_file(`${FOLDER}/rgb.png`);
const pixels = await RawImage.read(png);

const original_fetch = env.fetch;
afterEach(() => {
  env.fetch = original_fetch;
});

function answer_with(make: (url: string, init?: RequestInit) => Response | Promise<Response>) {
  const fetch = vi.fn(async (url: RequestInfo | URL, init?: RequestInit) => make(String(url), init));
  env.fetch = fetch as typeof globalThis.fetch;
  return fetch;
}

function base64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}

function shared_copy(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length));
  copy.set(bytes);
  return copy;
}

describe("RawImage.read takes", () => {
  test.each<[string, () => Parameters<typeof RawImage.read>[0]]>([
    ["a Uint8Array", () => png],
    ["part of a larger buffer", () => Uint8Array.from([1, 2, 3, ...png, 4]).subarray(3, -1)],
    ["an ArrayBuffer", () => png.slice().buffer],
    // Shared memory is only there on isolated pages.
    ["shared memory", () => (typeof SharedArrayBuffer === "undefined" ? png : shared_copy(png))],
    ["a DataView", () => new DataView(png.slice().buffer)],
    ["a Blob", () => new Blob([png as BlobPart])],
    ["a File", () => new File([png as BlobPart], "cat.png", { type: "image/png" })],
    ["a data: URL", () => `data:image/png;base64,${base64(png)}`],
    ["a percent-encoded data: URL", () => `data:image/png;base64,${encodeURIComponent(base64(png))}`],
    ["bare base64, as load_image takes it", () => base64(png)],
    ["base64 of many lines", () => base64(png).replace(/.{76}/g, "$&\r\n")],
    ["a URL object", () => new URL(`data:image/png;base64,${base64(png)}`)],
    ["a blob: URL", () => URL.createObjectURL(new Blob([png as BlobPart]))],
  ])("%s", async (_, make) => {
    expect(await RawImage.read(make())).toEqual(pixels);
  });

  test("a RawImage, given back as it is", async () => {
    expect(await RawImage.read(pixels)).toBe(pixels);
  });

  test("an object like ImageData", async () => {
    const data = Uint8ClampedArray.of(1, 2, 3, 4, 5, 6, 7, 8);
    const image = await RawImage.read({ data, width: 2, height: 1, colorSpace: "srgb" } as ImageData);
    expect(image).toMatchObject({ data, size: [2, 1], channels: 4 });
  });

  test("an http(s) URL, through env.fetch", async () => {
    const fetch = answer_with(() => new Response(png as BodyInit));
    expect(await RawImage.read("https://images.example/cat.png")).toEqual(pixels);
    expect(await RawImage.fromURL(new URL("http://images.example/cat.png"))).toEqual(pixels);
    expect(fetch.mock.calls.map(([url]) => String(url))).toEqual([
      "https://images.example/cat.png",
      "http://images.example/cat.png",
    ]);
  });

  test.each([undefined, null, 7, true, {}, [], () => 1])("nothing like %s", async (input) => {
    await expect(RawImage.read(input as unknown as string)).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  });
});

describe("a URL that can't be read", () => {
  const url = "https://images.example/cat.png";

  test.each([
    [404, "NOT_FOUND"],
    [403, "ACCESS_DENIED"],
    [500, "NETWORK"],
  ])("status %i is %s", async (status, code) => {
    answer_with(() => new Response("no", { status }));
    await expect(RawImage.read(url)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(new RegExp(`${url} can't be fetched: the server answered ${status}`)),
    });
  });

  test("messages leave out a URL's query, which may hold a signature", async () => {
    answer_with(() => new Response("no", { status: 404 }));
    const error = await RawImage.read(`${url}?signature=secret`).catch((error) => error);
    expect(JSON.stringify([error.message, error.details])).not.toContain("secret");
  });

  test("an unreachable host is NETWORK, with the cause", async () => {
    const cause = new TypeError("fetch failed");
    answer_with(() => Promise.reject(cause));
    await expect(RawImage.read(url)).rejects.toMatchObject({ code: "NETWORK", cause });
  });

  test("a connection that breaks off is NETWORK", async () => {
    const pull = (controller: ReadableStreamDefaultController) =>
      controller.error(new TypeError("terminated"));
    answer_with(() => new Response(new ReadableStream({ pull })));
    await expect(RawImage.read(url)).rejects.toMatchObject({ code: "NETWORK" });
  });

  test("an HTML page instead of an image is named", async () => {
    answer_with(() => new Response("<!DOCTYPE html><html><body>Not found</body></html>"));
    await expect(RawImage.read(url)).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(new RegExp(`${url} is an HTML page`)),
    });
  });

  test("an endless answer is cut off", async () => {
    const chunk = new Uint8Array(2 ** 24);
    const cancel = vi.fn();
    answer_with(() => new Response(new ReadableStream({ pull: (c) => c.enqueue(chunk), cancel })));
    await expect(RawImage.read(url)).rejects.toMatchObject({ code: "INVALID_IMAGE" });
    expect(cancel).toHaveBeenCalled();
  });

  test("an answer that announces too many bytes isn't read", async () => {
    answer_with(() => new Response("x", { headers: { "content-length": "999999999" } }));
    await expect(RawImage.read(url)).rejects.toMatchObject({ code: "INVALID_IMAGE" });
  });

  test.each(["data:image/png", "data:image/png;base64,%", "data:image/png;base64,§§", "data:,hello"])(
    "%s is INVALID_IMAGE",
    async (broken) => {
      await expect(RawImage.read(broken)).rejects.toMatchObject({ code: "INVALID_IMAGE" });
    },
  );

  test("an aborted read is ABORTED, before and during the download", async () => {
    const controller = new AbortController();
    const { signal } = controller;
    answer_with((_, init) => new Promise((_, reject) => init?.signal?.addEventListener("abort", reject)));
    const pending = RawImage.read(url, { signal });
    controller.abort();
    await expect(pending).rejects.toMatchObject({ code: "ABORTED" });
    await expect(RawImage.read(url, { signal })).rejects.toMatchObject({ code: "ABORTED" });
    await expect(RawImage.read(png, { signal })).rejects.toMatchObject({ code: "ABORTED" });
  });
});

/** The first bytes of a PNG whose header claims the size. */
function png_claiming(width: number, height: number): Uint8Array {
  const bytes = png.slice();
  const view = new DataView(bytes.buffer);
  view.setUint32(16, width);
  view.setUint32(20, height);
  return bytes;
}

const text = (value: string) => new TextEncoder().encode(value);

test.each([
  ["base64 of no image", "A".repeat(1e6)],
  ["base64 that breaks off", `${base64(png)}${"A".repeat(1e6)}=A`],
  ["a text of many words", "a cat ".repeat(1e5)],
  ["a data: URL", `data:image/png;base64,${"?".repeat(1e6)}`],
])("%s never appears whole in a message", async (_, text) => {
  const error = await RawImage.read(text).catch((error) => error);
  expect(error.name).toBe("VitMsnError");
  expect(JSON.stringify([error.message, error.details]).length).toBeLessThan(600);
});

describe("what isn't an image is refused by name", () => {
  test.each<[string, Uint8Array, RegExp]>([
    ["nothing", new Uint8Array(0), /empty \(0 bytes\)/],
    ["noise", Uint8Array.of(1, 2, 3, 250), /data of an unknown kind, not/],
    ["HTML", text("\n<html><body>login</body></html>"), /an HTML page/],
    ["JSON", text('{"error": "gone"}'), /JSON or text/],
    ["text", text("hello"), /is text, not/],
    ["a Git LFS pointer", text("version https://git-lfs.github.com/spec/v1\n"), /Git LFS pointer/],
    ["a PDF", text("%PDF-1.7"), /a PDF document.*export its pages/],
    ["a video", text("\0\0\0\x18ftypisom\0\0\0\0isommp42"), /a video \(MP4 or QuickTime\).*extract a frame/],
    ["a ZIP archive", text("PK\x03\x04\x14\0"), /a ZIP archive.*unpack it/],
    ["a Parquet table", text("PAR1\x15\0"), /a Parquet table/],
    ["gzip", Uint8Array.of(0x1f, 0x8b, 8, 0), /compressed by gzip.*unpack it/],
    ["a NumPy array", Uint8Array.of(0x93, ...text("NUMPY")), /a NumPy array/],
    [
      "HTML in UTF-16",
      Uint8Array.from([0xff, 0xfe, ...[..."<html>"].flatMap((c) => [c.charCodeAt(0), 0])]),
      /an HTML page/,
    ],
    ["a PNG of no pixels", png_claiming(0, 5), /0×5 pixels/],
    [
      "a PNG of 30,000 × 30,000 pixels",
      png_claiming(30_000, 30_000),
      /30000×30000 pixels, more than the limit/,
    ],
    ["a PNG wider than 65,535", png_claiming(70_000, 1), /70000×1 pixels, more than the limit/],
    ["a PNG's signature", png.slice(0, 8), /truncated/],
    ["a JPEG's first bytes", Uint8Array.of(0xff, 0xd8, 0xff, 0xe0, 0, 16), /truncated/],
    ["a WebP's first bytes", text("RIFF\xff\0\0\0WEBPVP8 ").slice(0, 20), /truncated|unknown/],
  ])("%s", async (_, bytes, message) => {
    const file = new File([bytes as BlobPart], "cat.png");
    await expect(RawImage.read(file)).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(message),
      details: { file: "cat.png" },
    });
  });

  test.each<[string, Uint8Array, RegExp]>([
    [
      "an SVG drawing",
      text('<svg xmlns="http://www.w3.org/2000/svg"><image href="x"/></svg>'),
      /an SVG drawing/,
    ],
    ["an SVG drawing with a prolog", text('<?xml version="1.0"?><svg width="1"/>'), /an SVG drawing/],
    ["a HEIC image", text("\0\0\0\x18ftypheic\0\0\0\0mif1heic"), /a HEIC image/],
    ["JPEG XL", Uint8Array.of(0xff, 0x0a, 0, 0), /a JPEG XL image/],
    ["an icon", Uint8Array.of(0, 0, 1, 0, 1, 0), /a Windows icon/],
    [
      "a TGA image",
      Uint8Array.of(0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 36, 0, 24, 0, 24, 0, 1, 2, 3),
      /a TGA image/,
    ],
    ["a DDS texture", text("DDS \x7c\0\0\0"), /a DDS texture/],
    ["a Photoshop file", text("8BPS\0\x01"), /a Photoshop file.*export it/],
    [
      "Xcode's PNG",
      Uint8Array.of(...png.slice(0, 8), 0, 0, 0, 4, ...text("CgBI"), 0x50, 0, 0x20, 6),
      /Xcode.*CgBI/,
    ],
  ])("%s is UNSUPPORTED", async (_, bytes, message) => {
    await expect(RawImage.read(bytes)).rejects.toMatchObject({
      code: "UNSUPPORTED",
      message: expect.stringMatching(message),
    });
  });

  test.each([
    "rgb.png",
    "rgba.png",
    "photo.jpg",
    "progressive.jpg",
    "lossless.webp",
    "still.gif",
    "photo.avif",
  ])("a truncated %s", async (name) => {
    const whole = await read_file(`${FOLDER}/${name}`);
    for (const part of [0.3, 0.6, 0.9]) {
      const bytes = whole.slice(0, Math.floor(whole.length * part));
      await expect(RawImage.read(bytes)).rejects.toMatchObject({ code: "INVALID_IMAGE" });
    }
  });

  test("the limit of pixels is an option", async () => {
    await expect(RawImage.read(png, { max_pixels: 37 * 23 - 1 })).rejects.toMatchObject({
      code: "INVALID_IMAGE",
    });
    expect(await RawImage.read(png, { max_pixels: 37 * 23 })).toEqual(pixels);
    await expect(RawImage.read(png, { max_pixels: Number.NaN })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  });
});
