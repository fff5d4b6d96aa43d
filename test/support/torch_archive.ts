/** Builds torch.save files and pickles byte by byte, sound ones and hostile ones. */
import { concat_bytes } from "../../ts/files/concat_bytes.ts";

export const concat = (...parts: Uint8Array[]): Uint8Array<ArrayBuffer> => concat_bytes(parts);
export const ascii = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);
export const bytes = (...values: number[]): Uint8Array<ArrayBuffer> => new Uint8Array(values);
export const uint16 = (value: number): Uint8Array => bytes(value & 255, (value >>> 8) & 255);
export const uint32 = (value: number): Uint8Array => concat(uint16(value & 0xffff), uint16(value >>> 16));
export const uint64 = (value: number | bigint): Uint8Array =>
  new Uint8Array(new BigUint64Array([BigInt(value)]).buffer);

/** Pickle instructions. */
export const op = {
  proto: (version: number) => bytes(0x80, version),
  global: (module: string, name: string) => concat(ascii("c"), ascii(`${module}\n${name}\n`)),
  stack_global: (module: string, name: string) =>
    concat(op.short_unicode(module), op.short_unicode(name), bytes(0x93)),
  unicode: (text: string) => concat(ascii("X"), uint32(ascii(text).byteLength), ascii(text)),
  short_unicode: (text: string) => concat(bytes(0x8c, ascii(text).byteLength), ascii(text)),
  int: (value: number) => concat(ascii("J"), uint32(value)),
  long: (value: bigint) => concat(bytes(0x8a, 8), uint64(BigInt.asUintN(64, value))),
  mark: ascii("("),
  tuple: (...items: Uint8Array[]) => concat(op.mark, ...items, ascii("t")),
  empty_tuple: ascii(")"),
  empty_dict: ascii("}"),
  empty_list: ascii("]"),
  reduce: ascii("R"),
  build: ascii("b"),
  persistent_id: ascii("Q"),
  no: bytes(0x89),
  set_items: (...items: Uint8Array[]) => concat(op.mark, ...items, ascii("u")),
  put: (index: number) => concat(ascii("r"), uint32(index)),
  get: (index: number) => concat(ascii("j"), uint32(index)),
  stop: ascii("."),
};

export const ordered_dict = concat(op.global("collections", "OrderedDict"), op.empty_tuple, op.reduce);

export interface TorchTensor {
  storage?: string;
  type?: string;
  /** Elements that the pickle claims; default as `data` has. */
  count?: number;
  offset?: number;
  dims: number[];
  strides: number[];
}

export function tensor_pickle({
  storage = "0",
  type = "FloatStorage",
  count = 6,
  offset = 0,
  dims,
  strides,
}: TorchTensor) {
  const id = op.tuple(
    op.unicode("storage"),
    op.global("torch", type),
    op.unicode(storage),
    op.unicode("cpu"),
    op.int(count),
  );
  return concat(
    op.global("torch._utils", "_rebuild_tensor_v2"),
    op.tuple(
      concat(id, op.persistent_id),
      op.int(offset),
      op.tuple(...dims.map(op.int)),
      op.tuple(...strides.map(op.int)),
      op.no,
      ordered_dict,
    ),
    op.reduce,
  );
}

export function state_dict_pickle(tensors: Record<string, TorchTensor>, protocol = 2) {
  const items = Object.entries(tensors).flatMap(([key, tensor]) => [op.unicode(key), tensor_pickle(tensor)]);
  return concat(op.proto(protocol), op.empty_dict, op.set_items(...items), op.stop);
}

export interface Member {
  name: string;
  data: Uint8Array;
  method?: number;
  flags?: number;
  /** As the headers claim; default 0, none. */
  crc32?: number;
  /** Size that both headers claim; default the data's. */
  claimed_size?: number;
  /** Compressed size that both headers claim; default the size. */
  claimed_packed_size?: number;
  /** Place that the directory claims; default the member's own. */
  claimed_offset?: number;
  local_name?: string;
  extra?: Uint8Array;
}

export interface ZipOptions {
  zip64?: boolean;
  claimed_count?: number;
  disk?: number;
}

/** A zip file of stored members. */
export function zip(
  members: Member[],
  { zip64 = false, claimed_count = members.length, disk = 0 }: ZipOptions = {},
) {
  const locals: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  for (const {
    name,
    data,
    method = 0,
    flags = 0,
    crc32 = 0,
    claimed_size,
    claimed_packed_size,
    claimed_offset,
    local_name = name,
    extra,
  } of members) {
    const size = uint32(claimed_size ?? data.byteLength);
    const packed = claimed_packed_size === undefined ? size : uint32(claimed_packed_size);
    const head = concat(uint16(20), uint16(flags), uint16(method), uint32(0), uint32(crc32), packed, size);
    const extra_bytes = extra ?? bytes();
    const local = concat(
      ascii("PK\x03\x04"),
      head,
      uint16(ascii(local_name).byteLength),
      uint16(extra_bytes.byteLength),
      ascii(local_name),
      extra_bytes,
      data,
    );
    locals.push(local);
    directory.push(
      concat(
        ascii("PK\x01\x02"),
        uint16(20),
        head,
        uint16(ascii(name).byteLength),
        uint16(0),
        uint16(0),
        uint16(disk),
        uint16(0),
        uint32(0),
        uint32(claimed_offset ?? offset),
        ascii(name),
      ),
    );
    offset += local.byteLength;
  }
  const listing = concat(...directory);
  const count = uint16(Math.min(claimed_count, 0xffff));
  const end = concat(
    ascii("PK\x05\x06"),
    uint16(disk),
    uint16(disk),
    count,
    count,
    uint32(zip64 ? 0xffffffff : listing.byteLength),
    uint32(zip64 ? 0xffffffff : offset),
    uint16(0),
  );
  const end64 = concat(
    ascii("PK\x06\x06"),
    uint64(44),
    uint16(45),
    uint16(45),
    uint32(0),
    uint32(0),
    uint64(claimed_count),
    uint64(claimed_count),
    uint64(listing.byteLength),
    uint64(offset),
    ascii("PK\x06\x07"),
    uint32(0),
    uint64(offset + listing.byteLength),
    uint32(1),
  );
  return concat(...locals, listing, ...(zip64 ? [end64] : []), end);
}

export const floats = (...values: number[]): Uint8Array => new Uint8Array(new Float32Array(values).buffer);
export const SIX = floats(0, 1, 2, 3, 4, 5);

/** A torch.save file of this pickle and these storages. */
export function torch_file(
  pickle: Uint8Array,
  storages: Record<string, Uint8Array> = { 0: SIX },
  prefix = "archive/",
) {
  return zip([
    { name: `${prefix}data.pkl`, data: pickle },
    { name: `${prefix}byteorder`, data: ascii("little") },
    ...Object.entries(storages).map(([key, data]) => ({ name: `${prefix}data/${key}`, data })),
    { name: `${prefix}version`, data: ascii("3\n") },
  ]);
}
