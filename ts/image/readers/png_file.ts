import { invalid_image, truncated } from "../limits.ts";
import { orientation_of } from "../orientation.ts";
import { has, latin1 } from "../signatures.ts";
import { inflate_text } from "./inflate.ts";

/** The most bytes that a text may inflate to, as in Pillow, and the most that are read of a profile. */
const MAX_TEXT = 2 ** 20;
const TEXT_TYPE = /^(tEX|zTX|iTX)t$/;
const HEADER_SIZE = 13;
const PROFILE_KEY = "Raw profile type exif";
const XMP_KEY = "XML:com.adobe.xmp";

/** What a PNG file says about its image. */
export interface PngFile {
  width: number;
  height: number;
  bit_depth: number;
  color_type: number;
  is_interlaced: boolean;
  palette: Uint8Array | undefined;
  transparency: Uint8Array | undefined;
  /** Bytes in all IDAT chunks, which hold the image itself; an animation's other frames are in chunks of another type. */
  data_size: number;
  /** By EXIF or XMP, wherever they are in the file. */
  orientation: number;
}

interface Chunk {
  type: string;
  data: Uint8Array;
  /** Where the chunk begins, and where the next one. */
  start: number;
  end: number;
}

/**
 * Reads a PNG file (https://www.w3.org/TR/png-3/) except its pixels. As in Pillow, wrong checksums of pixels and a missing IEND
 * are accepted. Takes no memory per chunk, since a file may have millions.
 *
 * @throws VitMsnError INVALID_IMAGE where a chunk of pixels is truncated, where there is none, or where the chunks that describe
 *   them are damaged.
 */
export async function read_png_file(bytes: Uint8Array, name: string): Promise<PngFile> {
  const damaged = (what: string) => invalid_image(`${name} is a damaged PNG file: ${what}.`, name);
  const { header, data_size, palette, transparency, exif, profile, xmp } = read_chunks(bytes, name, damaged);
  if (header === undefined) throw damaged("it has no header");
  if (data_size === undefined) throw truncated(name, "PNG");
  const [bit_depth, color_type] = [header.getUint8(8), header.getUint8(9)];
  if (!DEPTHS[color_type]?.includes(bit_depth) || header.getUint8(10) !== 0 || header.getUint8(11) !== 0) {
    throw damaged(`there are no pixels of color type ${color_type} and ${bit_depth} bits`);
  }
  if (color_type === 3 && palette === undefined) throw damaged("it has no palette");
  const embedded = exif ?? (await exif_of_profile(profile));
  return {
    width: header.getUint32(0),
    height: header.getUint32(4),
    bit_depth,
    color_type,
    is_interlaced: header.getUint8(12) !== 0,
    palette,
    transparency: transparency?.length ? transparency : undefined,
    data_size,
    orientation: orientation_of(embedded, xmp && (await text_of(xmp, XMP_KEY))),
  };
}

interface Chunks {
  header?: DataView;
  palette?: Uint8Array;
  transparency?: Uint8Array;
  data_size?: number;
  exif?: Uint8Array;
  /** The last text that holds EXIF, and the last that holds XMP. */
  profile?: Chunk;
  xmp?: Chunk;
}

function read_chunks(bytes: Uint8Array, name: string, damaged: (what: string) => Error): Chunks {
  const found: Chunks = {};
  for (const chunk of png_chunks(bytes)) {
    const { type, data } = chunk;
    if (type === "IDAT" && chunk.end - 4 > bytes.length) throw truncated(name, "PNG");
    const describes_pixels = ["IHDR", "PLTE", "tRNS"].includes(type);
    if (describes_pixels && found.data_size === undefined && !has_right_checksum(bytes, chunk)) {
      throw damaged(`the checksum of its chunk ${type} is wrong`);
    }
    if (type === "IHDR") {
      if (data.length < HEADER_SIZE) throw damaged("its header is too short");
      found.header ??= view_of(data);
    } else if (type === "PLTE") found.palette ??= data;
    else if (type === "tRNS") found.transparency ??= data;
    else if (type === "IDAT") found.data_size = (found.data_size ?? 0) + data.length;
    else if (type === "eXIf") found.exif = data;
    else if (!TEXT_TYPE.test(type)) continue;
    else if (has(data, 0, `${PROFILE_KEY}\0`)) found.profile = chunk;
    else if (has(data, 0, `${XMP_KEY}\0`)) found.xmp = chunk;
  }
  return found;
}

/** The zlib stream of the pixels of a file that read_png_file has read. */
export function png_data(bytes: Uint8Array, { data_size }: PngFile): Uint8Array {
  const stream = new Uint8Array(data_size);
  let to = 0;
  for (const { type, data } of png_chunks(bytes)) {
    if (type !== "IDAT") continue;
    stream.set(data, to);
    to += data.length;
  }
  return stream;
}

/** Bits a sample by color type. */
const DEPTHS: Readonly<Record<number, readonly number[]>> = {
  0: [1, 2, 4, 8, 16],
  2: [8, 16],
  3: [1, 2, 4, 8],
  4: [8, 16],
  6: [8, 16],
};

/** The file without EXIF, by which other decoders might turn its pixels, and without texts, which take memory. */
export function without_metadata(bytes: Uint8Array): Uint8Array {
  let rest: Uint8Array | undefined;
  let [from, to] = [0, 0];
  for (const { type, start, end } of png_chunks(bytes)) {
    if (type !== "eXIf" && !TEXT_TYPE.test(type)) continue;
    rest ??= new Uint8Array(bytes.length);
    rest.set(bytes.subarray(from, start), to);
    to += start - from;
    from = end;
  }
  if (rest === undefined) return bytes;
  rest.set(bytes.subarray(from), to);
  return rest.subarray(0, to + bytes.length - from);
}

/** The chunks of a file up to the last, which may be cut off. */
function* png_chunks(bytes: Uint8Array): Generator<Chunk> {
  const view = view_of(bytes);
  for (let start = 8; start + 8 <= bytes.length; ) {
    const type = latin1(bytes, start + 4, 4);
    const end = start + 12 + view.getUint32(start);
    yield {
      type,
      data: bytes.subarray(start + 8, end - 4),
      start,
      end: type === "IDAT" ? end : Math.min(end, bytes.length),
    };
    if (type === "IEND") return;
    start = end;
  }
}

/** A chunk's text, which its key comes before; undefined where it is damaged or too long. */
async function text_of({ type, data }: Chunk, key: string): Promise<Uint8Array | undefined> {
  const rest = data.subarray(key.length + 1);
  if (type === "tEXt") return rest;
  if (type === "zTXt") return inflate_text(rest.subarray(1), MAX_TEXT);
  // iTXt: whether it is compressed and how; a language and the translated key, each up to a zero.
  const text = rest.subarray(rest.indexOf(0, rest.indexOf(0, 2) + 1) + 1);
  return rest[0] === 0 ? text : inflate_text(text, MAX_TEXT);
}

/** EXIF as ImageMagick writes it: an empty line, a name and a length, each on its own, then hexadecimal digits. */
async function exif_of_profile(chunk: Chunk | undefined): Promise<Uint8Array | undefined> {
  const text = chunk && (await text_of(chunk, PROFILE_KEY));
  if (text === undefined) return undefined;
  const lines = new TextDecoder("latin1").decode(text.subarray(0, MAX_TEXT)).split("\n");
  const digits = lines.slice(3).join("").replace(/\s/g, "");
  return Uint8Array.from(digits.match(/[0-9a-f]{2}/gi) ?? [], (pair) => Number.parseInt(pair, 16));
}

function has_right_checksum(bytes: Uint8Array, { start, end }: Chunk): boolean {
  let sum = -1;
  for (const byte of bytes.subarray(start + 4, end - 4)) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (0xedb88320 & -(sum & 1));
  }
  return end <= bytes.length && view_of(bytes).getInt32(end - 4) === ~sum;
}

function view_of(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
