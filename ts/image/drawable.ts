import { VitMsnError } from "../errors.ts";
import { type_name } from "../is_a.ts";
import type { Pixels } from "./pixels.ts";

/** What a browser can draw, apart from image files. */
export type Drawable =
  | HTMLImageElement
  | HTMLVideoElement
  | HTMLCanvasElement
  | OffscreenCanvas
  | ImageBitmap
  | VideoFrame;

const DRAWABLES = [
  "HTMLImageElement",
  "HTMLVideoElement",
  "HTMLCanvasElement",
  "OffscreenCanvas",
  "ImageBitmap",
  "VideoFrame",
];

export function is_drawable(input: unknown): input is Drawable {
  return DRAWABLES.includes(type_name(input)); // of any frame
}

/** RGBA pixels of anything drawable, at its own size. A canvas is premultiplied: under low alpha, colour is coarse. */
export function read_drawable(input: Drawable, name: string): Pixels {
  const { width, height } = drawn_size(input, name);
  return draw(input, width, height, name);
}

/** Its own size. @throws VitMsnError INVALID_IMAGE where it has no pixels yet. */
export function drawn_size(input: Drawable, name: string): { width: number; height: number } {
  const { width, height } = natural_size(input);
  if (!(width > 0 && height > 0)) {
    throw new VitMsnError(
      "INVALID_IMAGE",
      `${name} has no pixels (${width}×${height}); wait until it is loaded, e.g. with image.decode().`,
      { details: { width, height } },
    );
  }
  return { width, height };
}

function natural_size(input: Drawable): { width: number; height: number } {
  if ("naturalWidth" in input) return { width: input.naturalWidth, height: input.naturalHeight };
  if ("videoWidth" in input) return { width: input.videoWidth, height: input.videoHeight };
  if ("displayWidth" in input) return { width: input.displayWidth, height: input.displayHeight };
  return input;
}

export function draw(input: Drawable, width: number, height: number, name: string): Pixels {
  if (typeof OffscreenCanvas === "undefined") {
    throw new VitMsnError("UNSUPPORTED", `This runtime has no OffscreenCanvas to read ${name} with.`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (context === null) {
    throw new VitMsnError(
      "OUT_OF_MEMORY",
      `A canvas of ${width}×${height} pixels for ${name} can't be created; scale it down.`,
    );
  }
  try {
    context.drawImage(input, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    return { data: new Uint8Array(data.buffer), width, height, channels: 4 };
  } catch (cause) {
    throw draw_error(cause, width, height, name);
  }
}

/** The error for an element of a page that couldn't be read. */
function draw_error(cause: unknown, width: number, height: number, name: string): VitMsnError {
  const { name: kind, message } = cause as Error;
  if (kind === "SecurityError") {
    const advice = `it shows an image of another site; set crossorigin="anonymous" on that image`;
    return new VitMsnError("ACCESS_DENIED", `${name} can't be read: ${advice}.`, { cause });
  }
  if (kind === "RangeError") {
    return new VitMsnError("OUT_OF_MEMORY", `${width}×${height} pixels of ${name} don't fit in memory.`, {
      cause,
    });
  }
  return new VitMsnError("INVALID_IMAGE", `${name} can't be read: ${message}`, { cause });
}
