import { setMaxListeners } from "node:events";
import { constants, type Stats } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Sharp } from "sharp";
import { Pacer } from "../engine/pacer.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { encode_name } from "../files/file_names.ts";
import { unsupported_scheme } from "../files/url_scheme.ts";
import { is_error } from "../is_a.ts";
import { planes_to_rgb, prepare_avif } from "./avif.ts";
import { ConcurrencyLimit } from "./concurrency_limit.ts";
import { type DecodeOptions, decode_file, read_own } from "./decoding.ts";
import { name_of } from "./fetch_image.ts";
import type { ImageFormat } from "./formats.ts";
import type { ImageHeader } from "./header.ts";
import { decode_heic, is_heic } from "./heic.node.ts";
import { check_byte_count, invalid_image, MAX_PIXELS } from "./limits.ts";
import { turn_upright, type UnturnedFile } from "./orientation.ts";
import { type Channels, multiply_255, type Pixels } from "./pixels.ts";
import { read_tiff_header } from "./tiff.ts";

/** Seconds after which libvips gives up an image. It can't interrupt the decoding of AVIF. */
const MAX_SECONDS = 60;
/** sharp's names of the formats that it decodes here. */
const SHARP_FORMATS: Readonly<Partial<Record<ImageFormat, string>>> = {
  PNG: "png",
  JPEG: "jpeg",
  WebP: "webp",
  AVIF: "heif",
  TIFF: "tiff",
};
const threads = Number(process.env.UV_THREADPOOL_SIZE) || 4;
/** Decoding takes threads of libuv's pool, also after an abort, which can't interrupt it; one thread stays free to read files. */
const decoders = new ConcurrencyLimit(Math.max(1, threads - 1));
/** Large AVIF files take long and can't be interrupted: one more thread stays free for images of other formats. */
const avif_decoders = new ConcurrencyLimit(Math.max(1, threads - 2));

/** Bytes to read at a time: an AbortSignal is checked between reads. */
const READ_BYTES = 8 * 1024 * 1024;

/**
 * Decodes an image file: upright by EXIF or XMP, 8 bits a channel, the first frame of an animation, stored values without
 * color management, as Pillow reads them. GIF, BMP, PNM and damaged PNG files are read by this package, HEIC by libheif-js, others by sharp (libvips).
 *
 * @throws VitMsnError INVALID_IMAGE, or UNSUPPORTED where sharp isn't installed or can't read the format.
 */
export async function decode_image(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  // Node would report a leak where one signal serves many images at once.
  if (options.signal !== undefined) setMaxListeners(0, options.signal);
  if (is_heic(bytes)) return decode_heic(bytes, options);
  return decode_file(bytes, options, ["GIF", "BMP", "PNM"], (file, header) => {
    const { name, signal } = options;
    const run = (limit: ConcurrencyLimit, work: () => Promise<Pixels>) =>
      limit.run(signal, `Decoding ${name}`, work);
    const decode = () => run(decoders, () => decode_by_sharp(file, header, bytes, options));
    return header.format === "AVIF" ? run(avif_decoders, decode) : decode();
  });
}

async function decode_by_sharp(
  file: UnturnedFile,
  header: ImageHeader,
  whole: Uint8Array,
  options: DecodeOptions,
): Promise<Pixels> {
  const { name, max_pixels = MAX_PIXELS, signal } = options;
  const { format } = header;
  const sharp = await load_sharp(name);
  const avif = format === "AVIF" ? prepare_avif(file.bytes) : undefined;
  const tiff = format === "TIFF" ? read_tiff_header(file.bytes, name, max_pixels) : undefined;
  const image = sharp(file.bytes, {
    failOn: "error",
    limitInputPixels: max_pixels,
    ignoreIcc: true,
  }).timeout({ seconds: MAX_SECONDS });
  const { orientation } = avif ?? tiff ?? file;
  if (avif === undefined) turn(image, orientation);
  try {
    await check_format(image, format);
    const pixels = await read_pixels(image, header.is_cmyk ?? tiff?.is_cmyk ?? false);
    if (avif?.planes === undefined) return pixels;
    await planes_to_rgb(pixels, avif.planes, new Pacer(signal, `Decoding ${name}`));
    return turn_upright(pixels, orientation);
  } catch (cause) {
    if (cause instanceof VitMsnError) throw cause;
    // libpng refuses what Pillow reads: wrong checksums, and pixels that end early.
    if (format === "PNG") return read_own(whole, format, options);
    const reason = is_error(cause) ? cause.message.split("\n")[0] : String(cause);
    throw invalid_image(`${name} can't be decoded as ${format}: ${reason}.`, name, {}, cause);
  }
}

async function load_sharp(name: string): Promise<typeof import("sharp").default> {
  try {
    return (await import("sharp")).default;
  } catch (cause) {
    throw new VitMsnError(
      "UNSUPPORTED",
      `Decoding ${name} needs the optional package sharp, ${why_not_loaded(cause)}`,
      { cause },
    );
  }
}

/** Where sharp is installed for another platform, its own message explains what to do. */
function why_not_loaded(cause: unknown): string {
  const message = is_error(cause) ? cause.message : String(cause);
  if (/find (package|module)?\s*['"]sharp['"]/i.test(message))
    return "which isn't installed; run `npm install sharp`. In a bundled server, keep sharp outside of the bundle.";
  return `which is installed but can't be loaded: ${message.replace(/\s+/g, " ").trim()}`;
}

/**
 * libvips chooses its decoder by the bytes and its own rules. The decoder of SVG drawings, which may fetch files and URLs, must
 * never be reached. header.ts accepts only signatures that lead to the right decoder; this is the second check.
 */
async function check_format(image: Sharp, format: ImageFormat): Promise<void> {
  const found = (await image.metadata()).format;
  if (found !== SHARP_FORMATS[format]) throw new Error(`libvips takes it for ${found}`);
}

/** Turns upright by EXIF's number. */
function turn(image: Sharp, orientation: number): void {
  const angle = [0, 0, 0, 180, 0, 90, 90, 90, 270][orientation] as number;
  if (angle !== 0) image.rotate(angle);
  if (orientation === 4 || orientation === 5) image.flip();
  if (orientation === 2 || orientation === 7) image.flop();
}

async function read_pixels(image: Sharp, is_cmyk: boolean): Promise<Pixels> {
  // libvips would convert inks to RGB by a print profile; Pillow multiplies.
  const pipeline = is_cmyk ? image.pipelineColourspace("cmyk").toColourspace("cmyk") : image;
  const { data, info } = await pipeline.raw().toBuffer({ resolveWithObject: true });
  const { width, height } = info;
  // A plain view: Buffer's slice() shares memory where Uint8Array's copies.
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const pixels = { data: bytes, width, height, channels: info.channels as Channels };
  return is_cmyk ? cmyk_to_rgb(pixels) : pixels;
}

function cmyk_to_rgb({ data, width, height }: Pixels): Pixels {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    const light = 255 - (data[from + 3] as number);
    for (let c = 0; c < 3; c++) rgb[to++] = light - multiply_255(data[from + c] as number, light);
  }
  return { data: rgb, width, height, channels: 3 };
}

/** The bytes of a file, by path or file: URL. Only regular files are read: others might never end, or block forever. */
export async function read_image_file(path: string, signal?: AbortSignal): Promise<Uint8Array> {
  let handle: FileHandle | undefined;
  try {
    const file = path.startsWith("file:") ? fileURLToPath(path) : encode_name(path);
    // Checked before opening, since opening a device may have effects, and again on the open file.
    check_regular(await stat(file), path);
    handle = await open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    const found = await handle.stat();
    check_regular(found, path);
    check_byte_count(found.size, path);
    return await read_bytes(handle, found.size, () => throw_if_aborted(signal, `Reading ${path}`));
  } catch (error) {
    throw_if_aborted(signal, `Reading ${name_of(path)}`);
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

/** The first `size` bytes, fewer where the file has been truncated meanwhile. Files of /proc, which report 0 bytes, aren't read. */
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
  const name = name_of(path);
  const options = { cause, details: { file: name } };
  if (code === "ENAMETOOLONG" || code === "ENOENT" || code === "ENOTDIR") {
    return (
      unsupported_scheme(path) ??
      new VitMsnError("NOT_FOUND", `There is no file ${name}; check the path.`, options)
    );
  }
  // The system's messages repeat the path, however long.
  return new VitMsnError("IO", `${name} can't be read: ${(cause as Error).message.slice(0, 300)}.`, options);
}
