import { throw_if_aborted, VitMsnError } from "../errors.ts";
import type { FileTensors, ReadFile } from "./checkpoint.ts";
import type { Checkpoint, ModelSource, RandomAccessFile } from "./types.ts";

const MAX_SHARDS = 1000;
/** Shards that download at a time. */
const MAX_OPENING = 4;

/**
 * Opens the files that an index names, and reads the header of each as soon as it has arrived. If one fails, those on their
 * way still reach the cache, but no other is requested.
 */
export async function open_shards(
  source: ModelSource,
  index: string,
  content: Record<string, unknown>,
  read: ReadFile,
  signal: AbortSignal | undefined,
): Promise<Checkpoint> {
  const shard_of = parse_weight_map(content, index, source.name);
  const names = [...new Set(shard_of.values())];
  const files: RandomAccessFile[] = [];
  const contents = new Map<string, FileTensors>();
  const waiting = [...names];
  let has_failed = false;
  const open_some = async () => {
    for (let name = waiting.shift(); name !== undefined && !has_failed; name = waiting.shift()) {
      throw_if_aborted(signal, `Loading ${source.name}`);
      const file = await source.open(name);
      if (!file) throw invalid(source.name, `lacks the shard ${name}, which ${index} lists`, "NOT_FOUND");
      if (has_failed) return file.close();
      files.push(file);
      contents.set(name, await read(file));
    }
  };
  try {
    await Promise.all(Array.from({ length: MAX_OPENING }, open_some));
    const { tensors, unreadable } = pick(contents, `${source.name}: ${index}`, shard_of);
    return {
      tensors: new Map(tensors.map((tensor) => [tensor.key, tensor])),
      unreadable,
      close: () => close_all(files),
    };
  } catch (error) {
    has_failed = true;
    await close_all(files);
    throw error;
  }
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
    throw invalid(name, `has a ${index} whose weight_map doesn't map keys to file names`);
  }
  const count = new Set(entries.map(([, file]) => file)).size;
  if (count === 0 || count > MAX_SHARDS)
    throw invalid(name, `has a ${index} that lists ${count} files; 1 to ${MAX_SHARDS} are allowed`);
  return new Map(entries);
}

/** Takes every key from the shard that the index names for it. */
function pick(
  contents: ReadonlyMap<string, FileTensors>,
  index: string,
  shard_of: ReadonlyMap<string, string>,
): FileTensors {
  const keyed = new Map(
    [...contents].map(([shard, { tensors, unreadable }]) => [
      shard,
      { tensors: new Map(tensors.map((tensor) => [tensor.key, tensor])), unreadable },
    ]),
  );
  const picked: FileTensors = { tensors: [], unreadable: new Map() };
  for (const [key, shard] of shard_of) {
    const content = keyed.get(shard);
    const tensor = content?.tensors.get(key);
    const dtype = content?.unreadable.get(key);
    if (tensor) picked.tensors.push(tensor);
    else if (dtype !== undefined) picked.unreadable.set(key, dtype);
    else
      throw invalid(
        index,
        `says that ${JSON.stringify(key)} is in ${shard}, which lacks it; the shards belong to different models`,
      );
  }
  return picked;
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
