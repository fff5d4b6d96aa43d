import {
  type ColumnMetaData,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
  type SchemaTree,
} from "hyparquet";
import { getTreePath } from "hyparquet/src/schema.js";
import { VitMsnError } from "../../errors.ts";
import type { RandomAccessFile } from "../../loading/types.ts";
import { is_record } from "../../options.ts";
import { LeastRecent } from "./least_recent.ts";
import { check_pages } from "./parquet_pages.ts";
import { bad_file } from "./table_errors.ts";

/** A file of more rows is damaged or hostile: their metadata alone would fill the memory. */
const MAX_ROWS = 50_000_000;
/** A column of a row group is in memory as a whole. */
const MAX_CHUNK_BYTES = 2 ** 30;
/** Images of row groups that stay in memory. */
const CACHE_BYTES = 2 ** 28;

export interface ParquetColumn {
  name: string;
  /** For a ClassLabel of Hugging Face datasets: its names, by index. */
  class_names: readonly string[] | undefined;
  is_float: boolean;
  /** Whether it holds files' bytes: binary, or a struct { bytes, path }. */
  is_embedded: boolean;
}

/** A cell that embeds an image. */
export interface EmbeddedImage {
  bytes: Uint8Array | undefined;
  path: string | undefined;
}

/** A Parquet file. It is opened for each read, so that thousands of files can be in use. */
export class ParquetFile {
  readonly name: string;
  readonly columns: readonly ParquetColumn[];
  readonly #open: () => Promise<RandomAccessFile>;
  readonly #metadata: FileMetaData;
  readonly #groups: readonly { first: number; rows: number }[];
  readonly #images = new LeastRecent<number, readonly EmbeddedImage[]>(CACHE_BYTES, bytes_in);

  private constructor(name: string, open: () => Promise<RandomAccessFile>, metadata: FileMetaData) {
    this.name = name;
    this.#open = open;
    this.#metadata = metadata;
    const class_names = class_names_in(metadata);
    this.columns = parquetSchema(metadata).children.map((tree) => {
      const leaf = leaf_of(tree);
      return {
        name: tree.element.name,
        class_names: class_names.get(tree.element.name),
        is_float: leaf?.type === "FLOAT" || leaf?.type === "DOUBLE",
        is_embedded: is_embedded(tree),
      };
    });
    let first = 0;
    this.#groups = metadata.row_groups.map(({ num_rows }) => {
      const group = { first, rows: Number(num_rows) };
      first += group.rows;
      return group;
    });
    const is_sound = this.#groups.every(({ rows }) => rows >= 0) && first <= MAX_ROWS;
    if (!is_sound)
      throw bad_file(name, `claims to have ${first} rows, more than the limit of ${MAX_ROWS}; split it`);
  }

  /** @throws VitMsnError INVALID_ARGUMENT if it isn't a Parquet file. */
  static async open(name: string, open: () => Promise<RandomAccessFile>): Promise<ParquetFile> {
    const metadata = await guarded(name, open, (file) =>
      parquetMetadataAsync(buffer_of(file), { geoparquet: false }),
    );
    return guarded(name, open, async () => new ParquetFile(name, open, metadata));
  }

  /** The values of some columns, row by row; images in them are read, too. */
  async *rows(columns: readonly string[]): AsyncGenerator<Readonly<Record<string, unknown>>> {
    for (const index of this.#groups.keys()) yield* await this.#read_group(index, columns);
  }

  get length(): number {
    return this.#groups.reduce((sum, { rows }) => sum + rows, 0);
  }

  /** The image in a row of an embedded column. Its whole row group is read, and cached. */
  async image(column: string, row: number): Promise<EmbeddedImage> {
    const index = this.#groups.findIndex(({ first, rows }) => row < first + rows);
    const images = await this.#images.get(index, async () =>
      (await this.#read_group(index, [column])).map((values) => embedded(values[column])),
    );
    return images[row - (this.#groups[index]?.first ?? 0)] as EmbeddedImage;
  }

  async #read_group(index: number, columns: readonly string[]): Promise<Readonly<Record<string, unknown>>[]> {
    const { first, rows } = this.#groups[index] as { first: number; rows: number };
    this.#check_chunks(index, columns);
    const found = await guarded(this.name, this.#open, async (file) => {
      await this.#check_pages(file, index, columns);
      return parquetReadObjects({
        file: buffer_of(file),
        metadata: this.#metadata,
        columns: [...columns],
        rowStart: first,
        rowEnd: first + rows,
        utf8: false,
        geoparquet: false,
      });
    });
    if (found.length === rows) return found;
    throw bad_file(this.name, `is damaged: row group ${index} has ${found.length} of ${rows} rows`);
  }

  #chunks(index: number, columns: readonly string[]): ColumnMetaData[] {
    const chunks = this.#metadata.row_groups[index]?.columns.map(({ meta_data }) => meta_data) ?? [];
    return chunks.filter(
      (chunk) => chunk !== undefined && columns.includes(chunk.path_in_schema[0] as string),
    ) as ColumnMetaData[];
  }

  /** Checks the pages that will be read. @throws Error. */
  async #check_pages(file: RandomAccessFile, index: number, columns: readonly string[]): Promise<void> {
    const { rows } = this.#groups[index] as { rows: number };
    const schema = parquetSchema(this.#metadata);
    for (const chunk of this.#chunks(index, columns)) {
      const start = Number(chunk.dictionary_page_offset || chunk.data_page_offset);
      const bytes = await file.read(start, Number(chunk.total_compressed_size));
      check_pages(bytes as Uint8Array<ArrayBuffer>, chunk, getTreePath(schema, chunk.path_in_schema), rows);
    }
  }

  /** @throws VitMsnError UNSUPPORTED for compression that can't be read, or row groups that are too large. */
  #check_chunks(index: number, columns: readonly string[]): void {
    for (const chunk of this.#chunks(index, columns)) {
      const problem = problem_of(chunk);
      if (problem === undefined) continue;
      const message = `${this.name}, row group ${index}, column ${chunk.path_in_schema.join(".")}: ${problem}.`;
      throw new VitMsnError("UNSUPPORTED", message, { details: { file: this.name } });
    }
  }
}

function problem_of({ codec, total_uncompressed_size, total_compressed_size }: ColumnMetaData) {
  if (codec !== "UNCOMPRESSED" && codec !== "SNAPPY")
    return `the compression ${codec} isn't supported; write the file with snappy, or without compression`;
  const bytes = Math.max(Number(total_uncompressed_size), Number(total_compressed_size));
  if (bytes <= MAX_CHUNK_BYTES) return undefined;
  return `it has ${bytes} bytes, more than the limit of ${MAX_CHUNK_BYTES}; write smaller row groups`;
}

/** Runs `work` on the open file. The parser's errors, of whatever kind, mean that the file is damaged. */
async function guarded<T>(
  name: string,
  open: () => Promise<RandomAccessFile>,
  work: (file: RandomAccessFile) => Promise<T>,
): Promise<T> {
  const file = await open();
  try {
    return await work(file);
  } catch (error) {
    if (error instanceof VitMsnError && error.code !== "INVALID_CHECKPOINT") throw error;
    const reason = (error as Error).message.replace(/\.+$/, "");
    throw bad_file(name, `can't be read as a Parquet file: ${reason}. Write or download it again`, error);
  } finally {
    await file.close();
  }
}

function buffer_of(file: RandomAccessFile) {
  return {
    byteLength: file.size,
    slice: async (start: number, end = file.size) => {
      const { buffer, byteOffset, byteLength } = await file.read(start, end - start);
      const is_whole = byteLength === buffer.byteLength && buffer instanceof ArrayBuffer;
      return (is_whole ? buffer : buffer.slice(byteOffset, byteOffset + byteLength)) as ArrayBuffer;
    },
  };
}

/** The only leaf of a column, such as a list's element; undefined for a struct of several. */
function leaf_of(tree: SchemaTree): SchemaTree["element"] | undefined {
  let found = tree;
  while (found.children.length === 1) found = found.children[0] as SchemaTree;
  return found.children.length === 0 ? found.element : undefined;
}

function is_embedded({ element, children }: SchemaTree): boolean {
  const names = children.map((child) => child.element.name);
  if (names.includes("bytes")) return true;
  const is_text = element.converted_type === "UTF8" || element.logical_type?.type === "STRING";
  return children.length === 0 && element.type === "BYTE_ARRAY" && !is_text;
}

function embedded(cell: unknown): EmbeddedImage {
  if (cell instanceof Uint8Array) return { bytes: cell, path: undefined };
  const { bytes, path } = (is_record(cell) ? cell : {}) as { bytes?: unknown; path?: unknown };
  return {
    bytes: bytes instanceof Uint8Array ? bytes : undefined,
    path: typeof path === "string" ? path : undefined,
  };
}

function bytes_in(images: readonly EmbeddedImage[]): number {
  return images.reduce((sum, { bytes }) => sum + (bytes?.length ?? 0), 0);
}

/** Hugging Face datasets writes the features of columns into the file's metadata. */
function class_names_in({ key_value_metadata = [] }: FileMetaData): Map<string, readonly string[]> {
  const found = new Map<string, readonly string[]>();
  const text = key_value_metadata.find(({ key }) => key === "huggingface")?.value;
  for (const [name, feature] of Object.entries(features_in(text))) {
    const names = names_of(feature);
    if (names !== undefined) found.set(name, names);
  }
  return found;
}

function features_in(text: string | undefined): Record<string, unknown> {
  try {
    const { info } = JSON.parse(text ?? "{}") as { info?: { features?: unknown } };
    return is_record(info?.features) ? info.features : {};
  } catch {
    return {};
  }
}

/** Of a ClassLabel, or of a list of them. */
function names_of(feature: unknown): readonly string[] | undefined {
  if (Array.isArray(feature)) return names_of(feature[0]);
  if (!is_record(feature)) return undefined;
  const { names, feature: element } = feature;
  if (Array.isArray(names) && names.every((name) => typeof name === "string")) return names;
  return element === undefined ? undefined : names_of(element);
}
