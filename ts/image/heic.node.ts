import type { HeifLibrary, HeifPlane } from "libheif-js/wasm-bundle.js";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { is_error } from "../is_a.ts";
import type { DecodeOptions } from "./decoding.ts";
import { check_size, invalid_image, MAX_PIXELS } from "./limits.ts";
import { convert_channels, is_opaque, type Pixels } from "./pixels.ts";
import { brands } from "./signatures.ts";

/** Whether it is a HEIF file that isn't AVIF, which has its own decoder. */
export function is_heic(bytes: Uint8Array): boolean {
  const found = brands(bytes);
  return (
    !found.some((brand) => /^avi[fs]$/.test(brand)) &&
    found.some((brand) => /^(hei|hev|mif1|msf1)/.test(brand))
  );
}

/**
 * Decodes the primary image of a HEIC file by the optional package libheif-js: upright, since libheif turns it as the file
 * says, and 8 bits a channel. It is WebAssembly on this thread, so an abort can't interrupt it.
 * @throws VitMsnError INVALID_IMAGE, or UNSUPPORTED where libheif-js isn't installed.
 */
export async function decode_heic(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name, max_pixels = MAX_PIXELS, signal } = options;
  throw_if_aborted(signal, `Decoding ${name}`);
  const heif = await load_libheif(name);
  const context = heif.heif_context_alloc();
  try {
    check(heif, heif.heif_context_read_from_memory(context, bytes), name);
    const handle = heif.heif_js_context_get_primary_image_handle(context);
    check(heif, handle, name);
    try {
      const width = heif.heif_image_handle_get_width(handle);
      const height = heif.heif_image_handle_get_height(handle);
      check_size(width, height, name, max_pixels);
      await options.admit?.({ format: "HEIC", mime: "image/heic", width, height });
      throw_if_aborted(signal, `Decoding ${name}`);
      return await read_pixels(heif, handle, name);
    } finally {
      heif.heif_image_handle_release(handle);
    }
  } finally {
    heif.heif_context_free(context);
  }
}

async function read_pixels(heif: HeifLibrary, handle: object, name: string): Promise<Pixels> {
  const { heif_colorspace_RGB, heif_chroma_interleaved_RGBA } = heif;
  const decoded = await heif.heif_js_decode_image2(handle, heif_colorspace_RGB, heif_chroma_interleaved_RGBA);
  check(heif, decoded, name);
  try {
    const pixels = packed(decoded.channels[0] as HeifPlane);
    return is_opaque(pixels.data) ? convert_channels(pixels, 3) : pixels;
  } finally {
    heif.heif_image_release(decoded.image);
  }
}

/** Without the gaps after each row. */
function packed({ data, width, height, stride }: HeifPlane): Pixels {
  const row_bytes = 4 * width;
  const rgba = new Uint8Array(height * row_bytes);
  for (let y = 0; y < height; y++) rgba.set(data.subarray(y * stride, y * stride + row_bytes), y * row_bytes);
  return { data: rgba, width, height, channels: 4 };
}

async function load_libheif(name: string): Promise<HeifLibrary> {
  try {
    return (await import("libheif-js/wasm-bundle.js")).default;
  } catch (cause) {
    const is_missing = (cause as NodeJS.ErrnoException).code === "ERR_MODULE_NOT_FOUND";
    const reason = is_error(cause) ? cause.message : String(cause);
    const problem = is_missing
      ? "isn't installed; run `npm install libheif-js`, or convert the image to JPEG or PNG"
      : `can't be loaded: ${reason.replace(/\s+/g, " ").trim()}`;
    throw new VitMsnError(
      "UNSUPPORTED",
      `${name} is a HEIC image, which needs the optional package libheif-js; it ${problem}.`,
      { cause, details: { file: name, found: "a HEIC image" } },
    );
  }
}

/** Instead of a result, libheif returns an error with a code and a message. */
function check(heif: HeifLibrary, result: object | null | undefined, name: string): void {
  const { code, message } = (result ?? { code: -1, message: "no image" }) as {
    code?: unknown;
    message?: string;
  };
  if (result && (code === undefined || code === heif.heif_error_Ok)) return;
  throw invalid_image(
    `${name} can't be decoded as HEIC: ${(message ?? "unknown error").trim().replace(/\s+/g, " ").replace(/ ?\.$/, "")}.`,
    name,
  );
}
