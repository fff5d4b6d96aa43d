import { readFile, stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Sharp } from "sharp";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { show_url } from "../network/show_url.ts";
import { type DecodeOptions, finish_decoding } from "./decoding.ts";
import {
  check_byte_count,
  check_size,
  invalid_image,
  MAX_PIXELS,
  type PictureHeader,
  read_header,
} from "./header.ts";
import { type Channels, multiply_255, type Pixels } from "./pixels.ts";

/**
 * Decodes a picture file with sharp (libvips): upright by its EXIF orientation, 8 bits a channel, the first frame
 * of an animation, stored values without colour management, as Pillow reads them.
 *
 * @throws VitMsnError INVALID_IMAGE, or UNSUPPORTED where sharp isn't installed or can't read the format.
 */
export async function decode_image(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name, max_pixels = MAX_PIXELS, signal } = options;
  throw_if_aborted(signal, `Decoding ${name}`);
  const header = read_header(bytes, name, max_pixels);
  if (header.format === "BMP") {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${name} is a BMP picture, which sharp can't read; convert it to PNG.`,
      {
        details: { file: name, found: header.format },
      },
    );
  }
  const sharp = await load_sharp(name);
  const picture = sharp(bytes, {
    failOn: "error",
    limitInputPixels: max_pixels,
    ignoreIcc: true,
    autoOrient: true,
  });
  const decoded = await read_pixels(picture, header, name);
  throw_if_aborted(signal, `Decoding ${name}`);
  check_size(decoded.width, decoded.height, name, max_pixels);
  return finish_decoding(decoded, header);
}

async function load_sharp(name: string): Promise<typeof import("sharp").default> {
  try {
    return (await import("sharp")).default;
  } catch (cause) {
    throw new VitMsnError(
      "UNSUPPORTED",
      `Decoding ${name} needs the optional package sharp, which can't be loaded; run \`npm install sharp\`.`,
      { cause },
    );
  }
}

async function read_pixels(picture: Sharp, header: PictureHeader, name: string): Promise<Pixels> {
  // libvips would turn inks into RGB by a print profile; Pillow multiplies.
  const pipeline = header.is_cmyk ? picture.pipelineColourspace("cmyk").toColourspace("cmyk") : picture;
  try {
    const { data, info } = await pipeline.raw().toBuffer({ resolveWithObject: true });
    const { width, height } = info;
    // A plain view: Buffer's slice() shares memory where Uint8Array's copies.
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const pixels = { data: bytes, width, height, channels: info.channels as Channels };
    return header.is_cmyk ? cmyk_to_rgb(pixels) : pixels;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.split("\n")[0] : String(cause);
    throw invalid_image(`${name} can't be decoded as ${header.format}: ${reason}.`, name, {}, cause);
  }
}

function cmyk_to_rgb({ data, width, height }: Pixels): Pixels {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    const light = 255 - (data[from + 3] as number);
    for (let c = 0; c < 3; c++) rgb[to++] = light - multiply_255(data[from + c] as number, light);
  }
  return { data: rgb, width, height, channels: 3 };
}

/** The bytes of a file, by path or file: URL. */
export async function read_picture_file(path: string, signal?: AbortSignal): Promise<Uint8Array> {
  refuse_scheme(path);
  try {
    const file = path.startsWith("file:") ? fileURLToPath(path) : path;
    check_byte_count((await stat(file)).size, path);
    return await readFile(file, { signal });
  } catch (error) {
    throw_if_aborted(signal, `Reading ${path}`);
    if (error instanceof VitMsnError) throw error;
    throw file_error(error, path);
  }
}

/** Addresses of stores and protocols that nothing here speaks, which would pass for paths. */
function refuse_scheme(address: string): void {
  const scheme = /^([a-z][a-z0-9+.-]+):\/\//i.exec(address)?.[1];
  if (scheme === undefined || scheme.toLowerCase() === "file") return;
  const shown = show_url(address);
  throw new VitMsnError(
    "UNSUPPORTED",
    `${shown} can't be read: ${scheme}:// addresses aren't supported. Give an http(s) URL (such as a presigned one), or download the file.`,
    { details: { file: shown } },
  );
}

function file_error(cause: unknown, path: string): VitMsnError {
  const code = (cause as NodeJS.ErrnoException).code;
  const options = { cause, details: { file: path } };
  if (code === "ENOENT" || code === "ENOTDIR") {
    return new VitMsnError("NOT_FOUND", `There is no file ${path}; check the path.`, options);
  }
  const reason = code === "EISDIR" ? "it is a folder" : (cause as Error).message;
  return new VitMsnError("IO", `${path} can't be read: ${reason}.`, options);
}
