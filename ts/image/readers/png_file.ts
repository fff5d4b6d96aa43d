import { invalid_image, truncated } from "../limits.ts";
import { orientation_of } from "../orientation.ts";
import { latin1 } from "../signatures.ts";
import { inflate_text } from "./inflate.ts";

/** What texts unpack to at most, as in Pillow. */
const MAX_TEXT = 2 ** 20;

/** The parts of a PNG file that its image is made of. */
export interface PngFile {
  width: number;
  height: number;
  bit_depth: number;
  color_type: number;
  is_interlaced: boolean;
  palette: Uint8Array | undefined;
  transparency: Uint8Array | undefined;
  /** The contents of the IDAT chunks, in order: the image itself; an animation's other frames are elsewhere. */
  data: Uint8Array[];
  /** By EXIF or XMP, wherever in the file. */
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
 * Takes a PNG file apart, forgiving what Pillow forgives: checksums of pixels and a missing end.
 * @throws VitMsnError INVALID_IMAGE where a chunk of pixels breaks off, there is none, or what describes them is damaged.
 */
export async function read_png_file(bytes: Uint8Array, name: string): Promise<PngFile> {
  const damaged = (what: string) => invalid_image(`${name} is a damaged PNG file: ${what}.`, name);
  const data: Uint8Array[] = [];
  const texts: Chunk[] = [];
  let header: DataView | undefined;
  let palette: Uint8Array | undefined;
  let transparency: Uint8Array | undefined;
  let exif: Uint8Array | undefined;
  for (const chunk of png_chunks(bytes)) {
    const { type } = chunk;
    if (type === "IDAT" && chunk.end - 4 > bytes.length) throw truncated(name, "PNG");
    if (data.length === 0 && ["IHDR", "PLTE", "tRNS"].includes(type) && !has_right_checksum(bytes, chunk)) {
      throw damaged(`the checksum of its chunk ${type} is wrong`);
    }
    if (type === "IHDR" && chunk.data.length >= 13) header ??= view_of(chunk.data);
    else if (type === "PLTE") palette ??= chunk.data;
    else if (type === "tRNS") transparency ??= chunk.data;
    else if (type === "IDAT") data.push(chunk.data);
    else if (type === "eXIf") exif = chunk.data;
    else if (/^[itz][TE]Xt$/.test(type)) texts.push(chunk);
  }
  if (header === undefined) throw damaged("it has no header");
  if (data.length === 0) throw truncated(name, "PNG");
  const [bit_depth, color_type] = [header.getUint8(8), header.getUint8(9)];
  if (!DEPTHS[color_type]?.includes(bit_depth) || header.getUint8(10) !== 0 || header.getUint8(11) !== 0) {
    throw damaged(`there are no pixels of color type ${color_type} and ${bit_depth} bits`);
  }
  if (color_type === 3 && palette === undefined) throw damaged("it has no palette");
  return {
    width: header.getUint32(0),
    height: header.getUint32(4),
    bit_depth,
    color_type,
    is_interlaced: header.getUint8(12) !== 0,
    palette,
    transparency: transparency?.length ? transparency : undefined,
    data,
    orientation: await png_orientation(exif, texts),
  };
}

/** Bits a sample by color type. */
const DEPTHS: Readonly<Record<number, readonly number[]>> = {
  0: [1, 2, 4, 8, 16],
  2: [8, 16],
  3: [1, 2, 4, 8],
  4: [8, 16],
  6: [8, 16],
};

/** The file without what says how to turn it, for decoders that might. */
export function without_orientation(bytes: Uint8Array): Uint8Array {
  const turning = [...png_chunks(bytes)].filter(({ type }) => type === "eXIf");
  if (turning.length === 0) return bytes;
  const kept = new Uint8Array(bytes.length - turning.reduce((sum, { start, end }) => sum + end - start, 0));
  let [from, to] = [0, 0];
  for (const { start, end } of [...turning, { start: bytes.length, end: bytes.length }]) {
    kept.set(bytes.subarray(from, start), to);
    to += start - from;
    from = end;
  }
  return kept;
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

/** By EXIF, in its own chunk or as ImageMagick keeps it in a text; else by XMP. */
async function png_orientation(exif: Uint8Array | undefined, texts: readonly Chunk[]): Promise<number> {
  const profile = exif === undefined ? await text_of(texts, "Raw profile type exif") : undefined;
  return orientation_of(
    exif ?? (profile && profile_bytes(profile)),
    await text_of(texts, "XML:com.adobe.xmp"),
  );
}

/** The last text under a key. */
async function text_of(chunks: readonly Chunk[], key: string): Promise<Uint8Array | undefined> {
  const chunk = chunks.findLast(({ data }) => latin1(data, 0, key.length + 1) === `${key}\0`);
  if (chunk === undefined) return undefined;
  const rest = chunk.data.subarray(key.length + 1);
  if (chunk.type === "tEXt") return rest;
  if (chunk.type === "zTXt") return inflate_text(rest.subarray(1), MAX_TEXT);
  // Whether it is packed and how; a language and the key in it, each up to a zero.
  const text = rest.subarray(rest.indexOf(0, rest.indexOf(0, 2) + 1) + 1);
  return rest[0] === 0 ? text : inflate_text(text, MAX_TEXT);
}

/** An empty line, a name and a length, each on its own, then hexadecimal digits. */
function profile_bytes(text: Uint8Array): Uint8Array {
  const digits = new TextDecoder("latin1").decode(text).split("\n").slice(3).join("").replace(/\s/g, "");
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
