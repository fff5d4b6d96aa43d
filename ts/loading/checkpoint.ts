import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { on_demand } from "../on_demand.ts";
import { check_range } from "./bytes.ts";
import { read_safetensors_header } from "./formats/safetensors.ts";
import { read_json } from "./json.ts";
import { adapter_hint } from "./no_config.ts";
import type {
  Checkpoint,
  CheckpointDtype,
  CheckpointTensor,
  ModelSource,
  RandomAccessFile,
} from "./types.ts";

/** The tensors of one file. */
export interface FileTensors {
  tensors: CheckpointTensor[];
  /** Keys of tensors that can't be read, with their dtypes. */
  unreadable: Map<string, string>;
}
type ReadFile = (file: RandomAccessFile) => Promise<FileTensors>;

const DTYPES: ReadonlyMap<string, CheckpointDtype> = new Map([
  ["F32", "float32"],
  ["F16", "float16"],
  ["BF16", "bfloat16"],
  ["I8", "int8"],
]);
/** What is looked for, in this order, as transformers does. */
const CANDIDATES: readonly { file: string; index: string; read: ReadFile }[] = [
  { file: "model.safetensors", index: "model.safetensors.index.json", read: read_safetensors },
  { file: "pytorch_model.bin", index: "pytorch_model.bin.index.json", read: read_pytorch_bin },
];
const MAX_SHARDS = 1000;

/** Reading torch's own files takes an unpickler and a reader of zip archives, which other models don't need. */
async function read_pytorch_bin(file: RandomAccessFile): Promise<FileTensors> {
  const { read_pytorch_bin } = await on_demand(
    "reader of pytorch_model.bin",
    () => import("./formats/pytorch_bin.ts"),
  );
  return read_pytorch_bin(file);
}

/**
 * Opens a model's weights without reading them: model.safetensors, else its shards, else pytorch_model.bin, else its
 * shards. Throws NOT_FOUND when there is none, INVALID_CHECKPOINT when a file is broken or lies about itself.
 */
export async function open_checkpoint(
  source: ModelSource,
  options: { signal?: AbortSignal } = {},
): Promise<Checkpoint> {
  // A server that answers with a page instead of "not found" mustn't hide a file of another name.
  let refusal: unknown;
  const probe = async <T>(look: () => Promise<T | undefined>): Promise<T | undefined> => {
    throw_if_aborted(options.signal, `Loading ${source.name}`);
    try {
      return await look();
    } catch (error) {
      if (!(error instanceof VitMsnError) || error.code !== "NOT_FOUND") throw error;
      refusal ??= error;
      return undefined;
    }
  };
  for (const { file, index, read } of CANDIDATES) {
    const single = await probe(() => source.open(file));
    if (single) return open_files([single], read);
    const shards = await probe(() => read_json(source, index));
    if (shards) return open_shards(source, index, shards, read, options.signal);
  }
  if (refusal) throw refusal;
  const names = CANDIDATES.flatMap(({ file, index }) => [file, index]);
  throw new VitMsnError(
    "NOT_FOUND",
    `${source.name} holds no weights: none of ${names.join(", ")} is there.${await adapter_hint(source)}`,
    {
      details: { source: source.name, files: names },
    },
  );
}

async function open_shards(
  source: ModelSource,
  index: string,
  content: Record<string, unknown>,
  read: ReadFile,
  signal: AbortSignal | undefined,
): Promise<Checkpoint> {
  const shard_of = parse_weight_map(content, index, source.name);
  const names = [...new Set(shard_of.values())];
  const files: RandomAccessFile[] = [];
  try {
    for (const name of names) {
      throw_if_aborted(signal, `Loading ${source.name}`);
      const file = await source.open(name);
      if (!file) throw invalid(source.name, `lacks the shard ${name} that ${index} names`, "NOT_FOUND");
      files.push(file);
    }
  } catch (error) {
    await close_all(files);
    throw error;
  }
  const file_of = new Map(names.map((name, i) => [name, files[i] as RandomAccessFile]));
  return open_files(files, read, { index: `${source.name}: ${index}`, shard_of, file_of });
}

function parse_weight_map(
  content: Record<string, unknown>,
  index: string,
  name: string,
): Map<string, string> {
  const map = content.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map)) {
    throw invalid(name, `has a ${index} without a weight_map`);
  }
  const entries = Object.entries(map);
  if (!entries.every((entry): entry is [string, string] => typeof entry[1] === "string")) {
    throw invalid(name, `has a ${index} whose weight_map names something else than files`);
  }
  const count = new Set(entries.map(([, file]) => file)).size;
  if (count === 0 || count > MAX_SHARDS)
    throw invalid(name, `has a ${index} that names ${count} files, not 1 to ${MAX_SHARDS}`);
  return new Map(entries);
}

interface Sharding {
  index: string;
  shard_of: ReadonlyMap<string, string>;
  file_of: ReadonlyMap<string, RandomAccessFile>;
}

async function open_files(
  files: RandomAccessFile[],
  read: ReadFile,
  sharding?: Sharding,
): Promise<Checkpoint> {
  try {
    const contents = new Map<RandomAccessFile, FileTensors>();
    for (const file of files) contents.set(file, await read(file));
    const { tensors, unreadable } = sharding
      ? pick(contents, sharding)
      : ([...contents.values()][0] as FileTensors);
    return {
      tensors: new Map(tensors.map((tensor) => [tensor.key, tensor])),
      unreadable,
      close: () => close_all(files),
    };
  } catch (error) {
    await close_all(files);
    throw error;
  }
}

/** Takes every key from the shard that the index gives it. */
function pick(
  contents: ReadonlyMap<RandomAccessFile, FileTensors>,
  { index, shard_of, file_of }: Sharding,
): FileTensors {
  const keyed = new Map(
    [...contents].map(([file, { tensors, unreadable }]) => [
      file,
      { tensors: new Map(tensors.map((tensor) => [tensor.key, tensor])), unreadable },
    ]),
  );
  const picked: FileTensors = { tensors: [], unreadable: new Map() };
  for (const [key, shard] of shard_of) {
    const content = keyed.get(file_of.get(shard) as RandomAccessFile);
    const tensor = content?.tensors.get(key);
    const dtype = content?.unreadable.get(key);
    if (tensor) picked.tensors.push(tensor);
    else if (dtype !== undefined) picked.unreadable.set(key, dtype);
    else
      throw invalid(
        index,
        `says that ${JSON.stringify(key)} is in ${shard}, which lacks it; the shards are of different models`,
      );
  }
  return picked;
}

/** The tensors of a safetensors file, none of them read yet. */
export async function read_safetensors(file: RandomAccessFile): Promise<FileTensors> {
  const result: FileTensors = { tensors: [], unreadable: new Map() };
  for (const { key, dtype: name, dims, start: base, end } of await read_safetensors_header(file)) {
    const read = async (start: number, length: number) => {
      check_range(`${file.name}: the tensor ${JSON.stringify(key)}`, end - base, start, length);
      return file.read(base + start, length);
    };
    const tensor = { key, file: file.name, dims };
    const dtype = DTYPES.get(name);
    const converted = dtype ? undefined : (await other_floats()).as_float32(name, read);
    if (dtype) result.tensors.push({ ...tensor, dtype, read });
    else if (converted) result.tensors.push({ ...tensor, dtype: "float32", read: converted });
    else result.unreadable.set(key, name);
  }
  return result;
}

/** Few files need it. */
function other_floats() {
  return on_demand("reader of float64 and float8", () => import("./formats/other_floats.ts"));
}

async function close_all(files: readonly RandomAccessFile[]): Promise<void> {
  await Promise.all(files.map((file) => file.close()));
}

function invalid(
  name: string,
  what: string,
  code: "INVALID_CHECKPOINT" | "NOT_FOUND" = "INVALID_CHECKPOINT",
): VitMsnError {
  return new VitMsnError(code, `${name} ${what}.`, { details: { source: name } });
}
