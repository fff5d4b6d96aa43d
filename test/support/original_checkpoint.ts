import type { FixtureTensor } from "./tensors.ts";
import { concat, op, tensor_pickle, torch_file } from "./torch_archive.ts";

/** Python's values as a test writes them: dicts as Maps, tensors of floats. */
export type Value = number | Map<string | number, Value> | { dims: readonly number[]; data: Float32Array };

/** A torch.save file of any nested dict of tensors and whole numbers. */
export function torch_dict_file(root: Map<string | number, Value>): Uint8Array<ArrayBuffer> {
  const storages: Record<string, Uint8Array> = {};
  const pickle = (value: Value): Uint8Array => {
    if (typeof value === "number") return op.int(value);
    if (value instanceof Map) {
      const items = [...value].flatMap(([key, item]) => [
        typeof key === "number" ? op.int(key) : op.unicode(key),
        pickle(item),
      ]);
      return concat(op.empty_dict, op.set_items(...items));
    }
    const storage = String(Object.keys(storages).length);
    const { dims, data } = value;
    storages[storage] = new Uint8Array(data.slice().buffer);
    const strides = dims.map((_, i) => dims.slice(i + 1).reduce((a, b) => a * b, 1));
    return tensor_pickle({ storage, count: data.length, dims: [...dims], strides });
  };
  return torch_file(concat(op.proto(2), pickle(root), op.stop), storages);
}

const LAYER_NAMES: readonly [string, string][] = [
  ["norm1", "layernorm_before"],
  ["attn.proj", "attention.output.dense"],
  ["norm2", "layernorm_after"],
  ["mlp.fc1", "intermediate.dense"],
  ["mlp.fc2", "output.dense"],
];

/**
 * A branch's state dict in the layout and order of MSN's own code, from tensors by the hub's keys and "head.*".
 * @param prefix "module." as after distributed training, or "".
 */
export function original_state_dict(
  tensors: ReadonlyMap<string, Pick<FixtureTensor, "dims" | "data">>,
  layers: number,
  prefix: string,
): Map<string | number, Value> {
  const dict = new Map<string | number, Value>();
  const find = (key: string) => tensors.get(key) as { dims: number[]; data: Float32Array };
  const add = (name: string, key: string) => dict.set(prefix + name, find(key));
  const both = (name: string, key: string) => {
    for (const what of ["weight", "bias"]) add(`${name}.${what}`, `${key}.${what}`);
  };
  add("cls_token", "embeddings.cls_token");
  add("pos_embed", "embeddings.position_embeddings");
  both("patch_embed.proj", "embeddings.patch_embeddings.projection");
  for (let i = 0; i < layers; i++) {
    const [norm1, ...others] = LAYER_NAMES as [[string, string], ...[string, string][]];
    both(`blocks.${i}.${norm1[0]}`, `encoder.layer.${i}.${norm1[1]}`);
    for (const what of ["weight", "bias"]) {
      const parts = ["query", "key", "value"].map((part) =>
        find(`encoder.layer.${i}.attention.attention.${part}.${what}`),
      );
      const data = new Float32Array(parts.flatMap((part) => [...part.data]));
      const [rows = 0, ...rest] = (parts[0] as { dims: number[] }).dims;
      dict.set(`${prefix}blocks.${i}.attn.qkv.${what}`, { dims: [3 * rows, ...rest], data });
    }
    for (const [name, key] of others) both(`blocks.${i}.${name}`, `encoder.layer.${i}.${key}`);
  }
  both("norm", "layernorm");
  for (const name of ["fc1", "bn1", "fc2", "bn2", "fc3"]) {
    if (!tensors.has(`head.${name}.weight`)) continue;
    both(`fc.${name}`, `head.${name}`);
    if (!name.startsWith("bn")) continue;
    for (const what of ["running_mean", "running_var"]) {
      if (tensors.has(`head.${name}.${what}`)) add(`fc.${name}.${what}`, `head.${name}.${what}`);
    }
  }
  return dict;
}
