import { beforeAll, describe, expect, test } from "vitest";
import { RawImage } from "../../ts/image/raw_image.ts";
import { read_file } from "../support/files.ts";

const FOLDER = "test/fixtures/image_files";
let png: Uint8Array;
let pixels: RawImage;

beforeAll(async () => {
  png = await read_file(`${FOLDER}/rgb.png`);
  pixels = await RawImage.read(png);
});

async function load_element(source: string): Promise<HTMLImageElement> {
  const element = new Image();
  element.src = source;
  await element.decode();
  return element;
}

function canvas_of_pixels(): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = pixels.size;
  const image = new ImageData(Uint8ClampedArray.from(pixels.rgba().data), pixels.width, pixels.height);
  (canvas.getContext("2d") as CanvasRenderingContext2D).putImageData(image, 0, 0);
  return canvas;
}

describe("RawImage.read takes what a page has", () => {
  test.each<[string, () => Parameters<typeof RawImage.read>[0] | Promise<HTMLImageElement | ImageBitmap>]>([
    ["an <img>", () => load_element(`/${FOLDER}/rgb.png`)],
    ["a <canvas>", canvas_of_pixels],
    ["a <canvas> of a frame", canvas_of_a_frame],
    ["a canvas's ImageBitmap", () => createImageBitmap(canvas_of_pixels())],
    ["a VideoFrame", () => new VideoFrame(canvas_of_pixels(), { timestamp: 0 })],
    [
      "ImageData",
      () => new ImageData(Uint8ClampedArray.from(pixels.rgba().data), pixels.width, pixels.height),
    ],
    ["an OffscreenCanvas", () => offscreen()],
  ])("%s", async (_, make) => {
    const image = await RawImage.read(await make());
    expect(image.channels).toBe(4);
    expect([...image.rgb().data]).toEqual([...pixels.data]);
    expect(image.size).toEqual(pixels.size);
  });

  test("a URL relative to the page", async () => {
    expect(await RawImage.read(`/${FOLDER}/rgb.png`)).toEqual(pixels);
  });

  test("images in a worker", async () => {
    const worker = new Worker(new URL("../support/image_worker.ts", import.meta.url), { type: "module" });
    for (const name of ["rgb.png", "rgba.png", "photo.jpg"]) {
      const bytes = await read_file(`${FOLDER}/${name}`);
      const answer = new Promise<RawImage>((resolve, reject) => {
        worker.onmessage = (event) => resolve(event.data);
        worker.onerror = (event) => reject(new Error(event.message));
      });
      worker.postMessage(bytes);
      expect(await answer).toMatchObject({ ...(await RawImage.read(bytes)) });
    }
    worker.terminate();
  });
});

/** Of another realm: it isn't an instance of this page's HTMLCanvasElement. */
function canvas_of_a_frame(): HTMLCanvasElement {
  const frame = document.body.appendChild(document.createElement("iframe"));
  const canvas = (frame.contentDocument as Document).createElement("canvas");
  Object.assign(canvas, { width: pixels.width, height: pixels.height });
  (canvas.getContext("2d") as CanvasRenderingContext2D).drawImage(canvas_of_pixels(), 0, 0);
  return canvas;
}

function offscreen(): OffscreenCanvas {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  (canvas.getContext("2d") as OffscreenCanvasRenderingContext2D).drawImage(canvas_of_pixels(), 0, 0);
  return canvas;
}

describe("what a page can't read is a typed error", () => {
  test("an <img> that isn't loaded", async () => {
    await expect(RawImage.read(new Image())).rejects.toMatchObject({ code: "INVALID_IMAGE" });
  });

  test("a missing file", async () => {
    await expect(RawImage.read("/no/such/image.png")).rejects.toMatchObject({
      code: expect.stringMatching(/^(NOT_FOUND|INVALID_IMAGE)$/),
    });
  });

  test("a TIFF image", async () => {
    const tiff = Uint8Array.of(0x49, 0x49, 0x2a, 0, 8, 0, 0, 0, 0, 0);
    await expect(RawImage.read(tiff)).rejects.toMatchObject({ code: "UNSUPPORTED" });
  });
});

test("forty transparent images at once don't exhaust the browser's WebGL contexts", async () => {
  const bytes = await read_file(`${FOLDER}/rgba.png`);
  const first = await RawImage.read(bytes);
  const all = await Promise.all(Array.from({ length: 40 }, () => RawImage.read(bytes)));
  for (const image of all) expect(image).toEqual(first);
});
