import { numel } from "../dims.ts";
import { VitMsnError } from "../errors.ts";
import { is_count } from "../is_count.ts";
import { decode_utf8 } from "../loading/bytes.ts";
import { read_safetensors } from "../loading/checkpoint.ts";
import { type TensorToWrite, write_safetensors } from "../loading/formats/write_safetensors.ts";
import { read_json } from "../loading/json.ts";
import type { FilesToSave } from "../loading/storage_types.ts";
import type { CheckpointTensor, ModelSource } from "../loading/types.ts";
import { BLOCK_ROWS, type Blocks, type IndexDtype, to_float32 } from "./blocks.ts";

/** A saved index is two files: a description, and the names and rows as tensors. */
const SETTINGS_FILE = "image_index.json";
const TENSORS_FILE = "image_index.safetensors";
const FORMAT = "vit-msn-image-index";
const VERSION = 1;
const MAX_SIZE = 1 << 20;

export interface IndexShape {
  /** The length of each vector. */
  size: number;
  dtype: IndexDtype;
  names: readonly string[];
}

/** The contents of the two files. */
export function index_files({ size, dtype, names }: IndexShape, blocks: Blocks | undefined): FilesToSave {
  const rows = names.length;
  // Each name ends with NUL, which none contains.
  const text = new TextEncoder().encode(names.map((name) => `${name}\0`).join(""));
  const tensors: TensorToWrite[] = [
    { key: "names", dtype: "int8", dims: [text.length], byte_length: text.length, bytes: text },
  ];
  if (blocks !== undefined) {
    tensors.push({
      key: "vectors",
      dtype,
      dims: [rows, size],
      byte_length: rows * size * (dtype === "int8" ? 1 : 4),
      bytes: pieces(blocks, "values"),
    });
    if (dtype === "int8")
      tensors.push({
        ...{ key: "scales", dtype: "float32", dims: [rows], byte_length: 4 * rows },
        bytes: pieces(blocks, "scales"),
      });
  }
  const settings = { format: FORMAT, version: VERSION, size, dtype, length: rows };
  return {
    [SETTINGS_FILE]: `${JSON.stringify(settings, undefined, 2)}\n`,
    [TENSORS_FILE]: write_safetensors(tensors),
  };
}

async function* pieces(blocks: Blocks, part: "values" | "scales"): AsyncGenerator<Uint8Array> {
  for await (const block of blocks.stored()) yield block[part] as Uint8Array;
}

/** A saved index, checked; its rows are read block by block. */
export interface SavedIndex extends IndexShape {
  rows(): AsyncGenerator<Float32Array>;
  close(): Promise<void>;
}

/**
 * Opens what index_files described. Both files are untrusted: each field and tensor is checked against the others.
 * @throws VitMsnError NOT_FOUND, INVALID_CONFIG or INVALID_CHECKPOINT.
 */
export async function open_index(source: ModelSource): Promise<SavedIndex> {
  const settings = await read_json(source, SETTINGS_FILE);
  const file = settings && (await source.open(TENSORS_FILE));
  if (!file) {
    throw new VitMsnError(
      "NOT_FOUND",
      `${source.name} lacks ${settings ? TENSORS_FILE : SETTINGS_FILE}; pass a folder that ImageIndex.save() wrote.`,
      { details: { source: source.name } },
    );
  }
  try {
    const { tensors } = await read_safetensors(file);
    const reader = new IndexReader(source.name, tensors);
    const shape = await reader.read(settings);
    return { ...shape, rows: () => reader.rows(shape), close: () => file.close() };
  } catch (error) {
    await file.close();
    throw error;
  }
}

class IndexReader {
  readonly #name: string;
  readonly #tensors: ReadonlyMap<string, CheckpointTensor>;

  constructor(name: string, tensors: readonly CheckpointTensor[]) {
    this.#name = name;
    this.#tensors = new Map(tensors.map((tensor) => [tensor.key, tensor]));
  }

  async read(settings: Record<string, unknown>): Promise<IndexShape> {
    const { format, version, size, dtype, length } = settings;
    if (format !== FORMAT) this.#fail(`"format" must be "${FORMAT}"`);
    if (version !== VERSION) this.#fail(`"version" must be ${VERSION}; a newer vit-msn may have written it`);
    if (dtype !== "float32" && dtype !== "int8") return this.#fail('"dtype" must be "float32" or "int8"');
    if (!is_count(size) || size > MAX_SIZE)
      return this.#fail(`"size" must be an integer from 0 to ${MAX_SIZE}`);
    if (!is_count(length) || (length > 0 && size === 0))
      return this.#fail('"length" must be the number of vectors');
    const names = await this.#names();
    if (names.length !== length) this.#fail(`it has ${names.length} names for ${length} vectors`);
    if (length > 0) this.#tensor("vectors", dtype, [length, size]);
    if (length > 0 && dtype === "int8") this.#tensor("scales", "float32", [length]);
    return { size, dtype, names };
  }

  async #names(): Promise<string[]> {
    const found = this.#tensors.get("names");
    if (found?.dtype !== "int8" || found.dims.length !== 1)
      return this.#fail('the tensor "names" is missing');
    const text = decode_utf8(await found.read(0, numel(found.dims)));
    if (text === undefined || (text !== "" && !text.endsWith("\0")))
      return this.#fail('the tensor "names" must be UTF-8, each name ended by NUL');
    return text.split("\0").slice(0, -1);
  }

  async *rows({ size, dtype, names }: IndexShape): AsyncGenerator<Float32Array> {
    const item = dtype === "int8" ? 1 : 4;
    for (let first = 0; first < names.length; first += BLOCK_ROWS) {
      const rows = Math.min(BLOCK_ROWS, names.length - first);
      const values = await this.#read("vectors", first * size * item, rows * size * item);
      const scales = dtype === "int8" ? await this.#read("scales", 4 * first, 4 * rows) : undefined;
      const floats = to_float32(values, scales, size);
      if (!floats.every(Number.isFinite)) this.#fail("its vectors hold NaN or infinity");
      for (let row = 0; row < rows; row++) yield floats.subarray(row * size, (row + 1) * size);
    }
  }

  #read(key: string, offset: number, length: number): Promise<Uint8Array> {
    return (this.#tensors.get(key) as CheckpointTensor).read(offset, length);
  }

  #tensor(key: string, dtype: string, dims: readonly number[]): void {
    const found = this.#tensors.get(key);
    if (found?.dtype === dtype && found.dims.join() === dims.join()) return;
    const is = found ? `${found.dtype} [${found.dims.join(", ")}]` : "missing";
    this.#fail(`the tensor "${key}" must be ${dtype} [${dims.join(", ")}], but it is ${is}`);
  }

  #fail(what: string): never {
    throw new VitMsnError("INVALID_CHECKPOINT", `${this.#name} is not a valid image index: ${what}.`, {
      details: { source: this.#name },
    });
  }
}
