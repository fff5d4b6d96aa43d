import { constants, type Stats } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Sharp } from "sharp";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { encode_name } from "../files/file_names.ts";
import { unsupported_scheme } from "../files/url_scheme.ts";
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

/** Bytes that are read at once: between them an AbortSignal is heard. */
const READ_BYTES = 8 * 1024 * 1024;

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

/** The bytes of a file, by path or file: URL. What isn't a regular file is refused: it might never end, or wait for ever. */
export async function read_picture_file(path: string, signal?: AbortSignal): Promise<Uint8Array> {
  let handle: FileHandle | undefined;
  try {
    const file = path.startsWith("file:") ? fileURLToPath(path) : encode_name(path);
    // Asked first, because opening a device may have effects; and once more of what was opened.
    check_regular(await stat(file), path);
    handle = await open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    const found = await handle.stat();
    check_regular(found, path);
    check_byte_count(found.size, path);
    return await read_bytes(handle, found.size, () => throw_if_aborted(signal, `Reading ${path}`));
  } catch (error) {
    throw_if_aborted(signal, `Reading ${path}`);
    if (error instanceof VitMsnError) throw error;
    throw file_error(error, path);
  } finally {
    await handle?.close();
  }
}

function check_regular(found: Stats, path: string): void {
  if (found.isFile()) return;
  const kind = found.isDirectory() ? "a folder" : "a device, pipe or socket";
  throw new VitMsnError("IO", `${path} can't be read: it is ${kind}, not a file.`, {
    details: { file: path },
  });
}

/** The first `size` bytes, fewer where the file was cut meanwhile. Files of /proc, which claim 0 bytes, aren't read. */
async function read_bytes(handle: FileHandle, size: number, check: () => void): Promise<Uint8Array> {
  const bytes = new Uint8Array(size);
  let done = 0;
  while (done < size) {
    check();
    const { bytesRead } = await handle.read(bytes, done, Math.min(size - done, READ_BYTES), done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return bytes.subarray(0, done);
}

function file_error(cause: unknown, path: string): VitMsnError {
  const code = (cause as NodeJS.ErrnoException).code;
  const options = { cause, details: { file: path } };
  if (code === "ENOENT" || code === "ENOTDIR") {
    return (
      unsupported_scheme(path) ??
      new VitMsnError("NOT_FOUND", `There is no file ${path}; check the path.`, options)
    );
  }
  return new VitMsnError("IO", `${short(path)} can't be read: ${reason_of(cause)}.`, options);
}

/** The system's messages repeat the path, however long. */
function reason_of(cause: unknown): string {
  const { code, message } = cause as NodeJS.ErrnoException;
  return code === "ENAMETOOLONG" ? "its name is too long" : message.slice(0, 300);
}

function short(path: string): string {
  return path.length > 300 ? `${path.slice(0, 300)}…` : path;
}
