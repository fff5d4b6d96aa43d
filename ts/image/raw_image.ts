import { decode_image, read_image_file } from "#decode";
import { env } from "../env.ts";
import { invalid_argument as invalid, show } from "../errors.ts";
import { is_a, type_name } from "../is_a.ts";
import type { HeaderRecord } from "../network/fetch_url.ts";
import { on_demand } from "../on_demand.ts";
import { abort_signal, any, bytes_of, check_options, count, type Rules, record } from "../options.ts";
import { type Drawable, is_drawable, read_drawable } from "./drawable.ts";
import { fetch_image, is_base64, name_of } from "./fetch_image.ts";
import type { ImageHeader } from "./header.ts";
import { check_byte_count } from "./limits.ts";
import { type Channels, convert_channels, type Pixels } from "./pixels.ts";
import {
  allocate,
  RESAMPLE,
  type ResampleCode,
  type ResampleName,
  resample_code,
  resize_pixels,
} from "./resize.ts";

export type { Channels, Drawable, ResampleCode, ResampleName };

/** Everything that RawImage.read accepts. */
export type ImageInput =
  | RawImage
  | string
  | URL
  | Blob
  | ArrayBuffer
  | ArrayBufferView
  | ImageData
  | Drawable;

export interface ReadOptions {
  /** The maximum number of pixels to decode; default 178,956,970, as in Pillow. */
  max_pixels?: number;
  /** Headers to send with the request for a http(s) URL, by name. */
  headers?: HeaderRecord;
  signal?: AbortSignal;
  /** @internal Called with a file's header; decoding waits for it. */
  admit?: (header: ImageHeader) => Promise<void>;
}

/** How ReadOptions are checked. */
export const READ_RULES: Rules = { signal: abort_signal, max_pixels: count, headers: record, admit: any };

/**
 * A decoded image: 8-bit pixels, row by row from the top left, channels interleaved.
 *
 * Every method returns a new image and leaves this one unchanged (they may share pixels where nothing changes).
 * Resizing and conversion return what Pillow returns, bit for bit.
 */
export class RawImage implements Pixels {
  /** Set explicitly, since minifiers rename classes. */
  static readonly name: string = "RawImage";
  readonly data: Uint8Array | Uint8ClampedArray;
  /** In pixels. */
  readonly width: number;
  /** In pixels. */
  readonly height: number;
  /** 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. */
  readonly channels: Channels;

  /**
   * @param data width·height·channels bytes; used as they are, not copied.
   * @throws VitMsnError INVALID_ARGUMENT where the arguments don't match each other.
   */
  constructor(data: Uint8Array | Uint8ClampedArray, width: number, height: number, channels: Channels) {
    if (!is_a(data, "Uint8Array", "Uint8ClampedArray")) {
      throw invalid("RawImage takes its pixels as a Uint8Array or Uint8ClampedArray.");
    }
    check_sides("RawImage", width, height);
    check_channels(channels);
    check_whole({ data, width, height, channels });
    this.data = data;
    this.width = width;
    this.height = height;
    this.channels = channels;
  }

  /**
   * Reads an image: PNG, JPEG, WebP, AVIF, GIF, BMP, PNM or, in Node, TIFF, of an animation the first frame; from a path
   * (Node), a URL (http, https, blob, data, file), base64, a Blob or File, the bytes of a file, ImageData, or an element
   * that can be drawn.
   *
   * The result is upright (orientation by EXIF or else XMP is applied) and has the file's channels: grey 1, RGB 3, with
   * transparency 4; palettes and CMYK become RGB, 16-bit samples are reduced to their high 8 bits. Color profiles are ignored,
   * as in the reference. A RawImage is returned unchanged.
   *
   * @throws VitMsnError INVALID_IMAGE for data that isn't an image, is truncated or too large; NOT_FOUND,
   *   ACCESS_DENIED, NETWORK and IO for files that can't be read; UNSUPPORTED; ABORTED.
   */
  static async read(input: ImageInput, options: ReadOptions = {}): Promise<RawImage> {
    check_options("RawImage.read", options, READ_RULES);
    if (input instanceof RawImage) {
      check_whole(input);
      return input;
    }
    if (typeof input === "string" || is_a(input, "URL")) return RawImage.fromURL(input, options);
    if (is_a(input, "Blob", "File")) return RawImage.fromBlob(input, options);
    if (is_drawable(input)) return RawImage.fromCanvas(input);
    if (is_a(input, "ArrayBuffer") || ArrayBuffer.isView(input)) {
      return decode(bytes_of(input, "The image"), "The image", options);
    }
    if (is_image_data(input)) return new RawImage(input.data, input.width, input.height, 4);
    throw invalid(
      "RawImage.read takes a path, URL, Blob, the bytes of an image file, ImageData, a canvas, image or frame, or a RawImage; " +
        `got ${show(input)}.`,
    );
  }

  /**
   * From a URL (http, https, blob, data, file), the base64 of an image file or, in Node, a path. Remote URLs are fetched by env.fetch;
   * a user and password in a URL are sent in an Authorization header.
   */
  static async fromURL(url: string | URL, options: ReadOptions = {}): Promise<RawImage> {
    if (typeof url !== "string" && !is_a(url, "URL")) throw invalid(`fromURL takes a URL, got ${show(url)}.`);
    check_options("RawImage.fromURL", options, READ_RULES);
    const address = is_base64(String(url)) ? `data:;base64,${url}` : String(url);
    const is_remote = /^(https?|blob|data):/i.test(address);
    const { signal, headers } = options;
    const bytes = is_remote
      ? await fetch_image(address, signal, headers)
      : await read_image_file(address, signal);
    return decode(bytes, name_of(address), options);
  }

  /** From a Blob or File that contains an image file. */
  static async fromBlob(blob: Blob, options: ReadOptions = {}): Promise<RawImage> {
    if (!is_a(blob, "Blob", "File")) throw invalid(`fromBlob takes a Blob, got ${show(blob)}.`);
    check_options("RawImage.fromBlob", options, READ_RULES);
    const name = (blob as Partial<File>).name || "The Blob";
    check_byte_count(blob.size, name);
    return decode(new Uint8Array(await blob.arrayBuffer()), name, options);
  }

  /** From a canvas, an image or video element, an ImageBitmap or a VideoFrame: RGBA. */
  static fromCanvas(canvas: Drawable): RawImage {
    if (!is_drawable(canvas))
      throw invalid(
        `fromCanvas takes a canvas, image, video, ImageBitmap or VideoFrame, got ${show(canvas)}.`,
      );
    return from_pixels(read_drawable(canvas, `The ${type_name(canvas)}`));
  }

  /** [width, height] in pixels. */
  get size(): [number, number] {
    return [this.width, this.height];
  }

  /** Three channels: grey is repeated, alpha is dropped without blending, as Pillow's convert("RGB"). */
  rgb(): RawImage {
    return this.convert(3);
  }

  /** Four channels: missing alpha is opaque. */
  rgba(): RawImage {
    return this.convert(4);
  }

  /** One channel: L = 0.299 R + 0.587 G + 0.114 B, as Pillow's convert("L"). */
  grayscale(): RawImage {
    return this.convert(1);
  }

  convert(channels: Channels): RawImage {
    check_channels(channels);
    check_whole(this);
    return channels === this.channels ? this : from_pixels(convert_channels(this, channels));
  }

  /**
   * @param width in pixels.
   * @param height in pixels.
   * @param options.resample Pillow's filter by name or code; default "bilinear" (2).
   */
  resize(width: number, height: number, options: { resample?: ResampleName | ResampleCode } = {}): RawImage {
    check_sides("resize", width, height);
    check_options("resize", options, { resample: any });
    check_whole(this);
    const { resample = RESAMPLE.bilinear } = options;
    const code = resample_code(resample);
    if (code === undefined)
      throw invalid(`resample is one of ${Object.keys(RESAMPLE).join(", ")}; got ${show(resample)}.`);
    return from_pixels(resize_pixels(this, width, height, code));
  }

  /** @param box [x_min, y_min, x_max, y_max] in pixels, the last column and row included, as in transformers.js. */
  crop(box: readonly [number, number, number, number]): RawImage {
    const [x_min, y_min, x_max, y_max] =
      Array.isArray(box) && box.every(Number.isInteger) ? box : [-1, 0, 0, 0];
    const is_inside = x_min >= 0 && y_min >= 0 && x_max < this.width && y_max < this.height;
    if (!is_inside || x_min > x_max || y_min > y_max) {
      throw invalid(
        `crop takes [x_min, y_min, x_max, y_max] within ${this.width}×${this.height} pixels, got ${show(box)}.`,
      );
    }
    return this.#window(x_min, y_min, x_max - x_min + 1, y_max - y_min + 1);
  }

  /** The middle width×height pixels; where the image is smaller, it is padded with zeros, as in the reference. */
  center_crop(width: number, height: number): RawImage {
    check_sides("center_crop", width, height);
    const left = Math.floor((this.width - width) / 2);
    const top = Math.floor((this.height - height) / 2);
    return this.#window(left, top, width, height);
  }

  clone(): RawImage {
    check_whole(this);
    return new RawImage(new Uint8Array(this.data), this.width, this.height, this.channels);
  }

  #window(left: number, top: number, width: number, height: number): RawImage {
    check_whole(this);
    const { channels } = this;
    const data = allocate(width, height, channels);
    const first = Math.max(left, 0);
    const last = Math.min(left + width, this.width);
    for (let y = Math.max(top, 0); y < Math.min(top + height, this.height); y++) {
      const row = this.data.subarray((y * this.width + first) * channels, (y * this.width + last) * channels);
      data.set(row, ((y - top) * width + first - left) * channels);
    }
    return new RawImage(data, width, height, channels);
  }
}

async function decode(bytes: Uint8Array, name: string, options: ReadOptions): Promise<RawImage> {
  check_byte_count(bytes.length, name);
  // Decoders accept no shared memory, which another thread might change meanwhile.
  const own_bytes = is_a(bytes.buffer, "ArrayBuffer") ? bytes : new Uint8Array(bytes);
  if (env.decode === undefined) return from_pixels(await decode_image(own_bytes, { name, ...options }));
  const { decode_by_env } = await on_demand("use of env.decode", () => import("./decode_given.ts"));
  return from_pixels(await decode_by_env(own_bytes, { name, ...options }));
}

export function from_pixels({ data, width, height, channels }: Pixels): RawImage {
  return new RawImage(data, width, height, channels);
}

function is_image_data(input: unknown): input is ImageData {
  const { data, width, height } = (input ?? {}) as Partial<ImageData>;
  const is_bytes = is_a(data as unknown, "Uint8Array", "Uint8ClampedArray");
  return is_bytes && typeof width === "number" && typeof height === "number";
}

function check_sides(what: string, width: number, height: number): void {
  const is_side = (side: number) => Number.isSafeInteger(side) && side >= 1;
  if (!is_side(width) || !is_side(height)) {
    throw invalid(
      `${what} takes a width and height that are positive integers, got ${show(width)} and ${show(height)}.`,
    );
  }
}

function check_channels(channels: unknown): void {
  if (![1, 2, 3, 4].includes(channels as number)) {
    throw invalid(`A RawImage has 1 to 4 channels (grey, grey+alpha, RGB, RGBA), got ${show(channels)}.`);
  }
}

/** The pixels may have been transferred to another thread since the image was created. */
function check_whole({ data, width, height, channels }: Pixels): void {
  const size = width * height * channels;
  if (data.length === size) return;
  throw invalid(
    `A RawImage of ${width}×${height} pixels and ${channels} channels has ${size} bytes, got ${data.length}.`,
  );
}
