import { type ColumnMetaData, type PageHeader, type SchemaTree, snappyUncompress } from "hyparquet";
import { parquetHeader } from "hyparquet/src/column.js";
import { getMaxDefinitionLevel, getMaxRepetitionLevel } from "hyparquet/src/schema.js";

/** The most values of a column's lists in one row group. */
const MAX_LIST_VALUES = 2 ** 24;
/** Three bytes of snappy copy at most 64. */
const MAX_SNAPPY_RATIO = 24;

/**
 * Checks the pages of a column chunk before the parser expands them: it trusts their counts, so a few bytes could fill the memory
 * or keep it busy forever.
 * @param bytes the chunk's, from its first page.
 * @param path the column's elements of the schema, from the root.
 * @throws Error that says what is wrong.
 */
export function check_pages(
  bytes: Uint8Array<ArrayBuffer>,
  chunk: ColumnMetaData,
  path: SchemaTree[],
  rows: number,
): void {
  const levels = { repetition: getMaxRepetitionLevel(path), definition: getMaxDefinitionLevel(path) };
  const total = Number(chunk.num_values);
  const limit = levels.repetition === 0 ? rows : MAX_LIST_VALUES;
  if (!(total <= limit)) throw new Error(`a column claims ${total} values, more than the limit of ${limit}`);
  const reader = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), offset: 0 };
  for (let done = 0; done < total; ) {
    const header = parquetHeader(reader);
    const size = header.compressed_page_size;
    if (!(size >= 0 && reader.offset + size <= bytes.length)) throw new Error("a page is cut");
    const page = bytes.subarray(reader.offset, reader.offset + size);
    reader.offset += size;
    const count = count_of(header);
    const is_dictionary = header.type === "DICTIONARY_PAGE";
    if (!(count >= 0 && count <= total - (is_dictionary ? 0 : done)))
      throw new Error(`a page claims ${count} values, more than its column has`);
    if (is_dictionary) unpacked(page, header.uncompressed_page_size, chunk);
    else {
      check_page(page, header, chunk, levels, count);
      done += count;
    }
  }
}

function count_of({ data_page_header, data_page_header_v2, dictionary_page_header }: PageHeader): number {
  const header = data_page_header ?? data_page_header_v2 ?? dictionary_page_header;
  if (header === undefined) throw new Error("a page is of an unknown kind");
  return header.num_values;
}

interface Levels {
  repetition: number;
  definition: number;
}

function check_page(
  page: Uint8Array<ArrayBuffer>,
  { data_page_header, data_page_header_v2, uncompressed_page_size }: PageHeader,
  chunk: ColumnMetaData,
  { repetition, definition }: Levels,
  count: number,
): void {
  if (data_page_header !== undefined) {
    const values = unpacked(page, uncompressed_page_size, chunk);
    let at = check_prefixed_runs(values, 0, repetition, count);
    at = check_prefixed_runs(values, at, definition, count);
    check_indices(values.subarray(at), data_page_header.encoding, chunk, count);
  } else if (data_page_header_v2 !== undefined) {
    const { repetition_levels_byte_length: first, definition_levels_byte_length: second } =
      data_page_header_v2;
    if (!(first >= 0 && second >= 0 && first + second <= page.length)) throw new Error("levels are cut");
    check_runs(page.subarray(0, first), repetition, count);
    check_runs(page.subarray(first, first + second), definition, count);
    const rest = page.subarray(first + second);
    const is_packed = data_page_header_v2.is_compressed !== false;
    const values = is_packed ? unpacked(rest, uncompressed_page_size - first - second, chunk) : rest;
    check_indices(values, data_page_header_v2.encoding, chunk, count);
  }
}

function unpacked(
  page: Uint8Array<ArrayBuffer>,
  size: number,
  { codec }: ColumnMetaData,
): Uint8Array<ArrayBuffer> {
  if (codec !== "SNAPPY") return page;
  if (!(size >= 0 && size <= MAX_SNAPPY_RATIO * page.length + 64))
    throw new Error(`a page of ${page.length} bytes claims to expand to ${size}`);
  const output = new Uint8Array(size);
  snappyUncompress(page, output);
  return output;
}

/** Runs of levels after their length. @returns where they end. */
function check_prefixed_runs(bytes: Uint8Array, at: number, level: number, count: number): number {
  if (level === 0) return at;
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
  check_runs(bytes.subarray(at + 4), level, count);
  return at + 4 + length;
}

/** The indices into a dictionary, or booleans, if values are encoded as runs. */
function check_indices(bytes: Uint8Array, encoding: string, { type }: ColumnMetaData, count: number): void {
  if (!/^(?:PLAIN_DICTIONARY|RLE_DICTIONARY|RLE)$/.test(encoding) || count === 0) return;
  if (type === "BOOLEAN") check_prefixed_runs(bytes, 0, 1, count);
  else if (bytes.length > 0) check_runs(bytes.subarray(1), 2 ** Math.min(bytes[0] as number, 32) - 1, count);
}

/** Runs of up to `count` numbers from 0 to `max`; the last ones may pad. */
function check_runs(bytes: Uint8Array, max: number, count: number): void {
  if (max === 0) return;
  const width = Math.ceil(Math.log2(max + 1));
  const limit = 2 * count + 64;
  for (let [at, seen] = [0, 0]; seen < count && at < bytes.length; ) {
    let [header, scale] = [0, 1];
    for (let byte = 128; byte >= 128; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 35) throw new Error("a run is cut");
      byte = bytes[at++] as number;
      header += (byte & 127) * scale;
    }
    const is_packed = header % 2 === 1;
    const half = Math.floor(header / 2);
    const length = is_packed ? 8 * half : half;
    if (length > limit) throw new Error(`a run claims ${length} values of a page of ${count}`);
    seen += length;
    at += is_packed ? half * width : Math.ceil(width / 8);
  }
}
