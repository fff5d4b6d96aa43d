import { WEIGHT_DTYPES, type WeightDtype } from "../dtypes.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { on_demand } from "../on_demand.ts";
import { check_range } from "./bytes.ts";
import { read_safetensors_header, SAFETENSORS_NAMES } from "./formats/safetensors.ts";
import { read_json } from "./json.ts";
import type { Checkpoint, CheckpointTensor, ModelSource, RandomAccessFile } from "./types.ts";

/** The tensors of one file. */
export interface FileTensors {
  tensors: CheckpointTensor[];
  /** Keys of tensors that can't be read, with their dtypes. */
  unreadable: Map<string, string>;
}
export type ReadFile = (file: RandomAccessFile) => Promise<FileTensors>;

const DTYPES: ReadonlyMap<string, WeightDtype> = new Map(
  WEIGHT_DTYPES.map((dtype) => [SAFETENSORS_NAMES[dtype], dtype]),
);
/** The files to try, in this order, as in transformers. */
const CANDIDATES: readonly { file: string; index: string; read: ReadFile }[] = [
  { file: "model.safetensors", index: "model.safetensors.index.json", read: read_safetensors },
  { file: "pytorch_model.bin", index: "pytorch_model.bin.index.json", read: read_pytorch_bin },
];

/** Reading torch's files needs an unpickler and a zip reader, which other models don't load. */
async function read_pytorch_bin(file: RandomAccessFile): Promise<FileTensors> {
  const { read_pytorch_bin } = await on_demand(
    "reader of pytorch_model.bin",
    () => import("./formats/pytorch_bin.ts"),
  );
  return read_pytorch_bin(file);
}

/**
 * Opens a model's weights without reading them: model.safetensors, else its shards, else pytorch_model.bin, else its
 * shards. Throws NOT_FOUND if there is none, INVALID_CHECKPOINT if a file is damaged or inconsistent.
 */
export async function open_checkpoint(
  source: ModelSource,
  options: { signal?: AbortSignal } = {},
): Promise<Checkpoint> {
  // If a server answers with a page instead of "not found", other names are still tried.
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
    if (single) return open_single(single, read);
    const shards = await probe(() => read_json(source, index));
    if (shards) {
      const { open_shards } = await on_demand("reader of shards", () => import("./shards.ts"));
      return open_shards(source, index, shards, read, options.signal);
    }
  }
  if (refusal) throw refusal;
  const { no_weights } = await on_demand("check of a model's files", () => import("./missing_files.ts"));
  throw await no_weights(
    source,
    CANDIDATES.flatMap(({ file, index }) => [file, index]),
  );
}

async function open_single(file: RandomAccessFile, read: ReadFile): Promise<Checkpoint> {
  try {
    const { tensors, unreadable } = await read(file);
    return {
      tensors: new Map(tensors.map((tensor) => [tensor.key, tensor])),
      unreadable,
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** The tensors of a safetensors file, which aren't read yet. */
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

/** Loaded on demand, since few files need it. */
function other_floats() {
  return on_demand("reader of float64 and float8", () => import("./formats/other_floats.ts"));
}
