import { crc32 } from "#crc32";
import type { WeightDtype } from "../../dtypes.ts";
import { VitMsnError } from "../../errors.ts";
import { refuse_lookalikes } from "../bytes.ts";
import type { CheckpointTensor, RandomAccessFile } from "../types.ts";
import { as_float32 } from "./other_floats.ts";
import { PickleDict, PickleGlobal, PickleTuple, refuse_pickle, unpickle } from "./pickle.ts";
import { element_count } from "./safetensors.ts";
import { locate_entry, read_zip, type StoredEntry } from "./zip.ts";

/** A dtype of torch. */
interface Dtype {
  /** torch's name for it. */
  name: string;
  item_bytes: number;
  /** The dtype as which it is read; undefined for dtypes that weights can't have. */
  read_as?: WeightDtype;
  /** safetensors' name for it, if it must be converted. */
  converted?: string;
}

const STORAGE_TYPES: ReadonlyMap<string, Dtype> = new Map([
  ["torch.FloatStorage", { name: "float32", item_bytes: 4, read_as: "float32" }],
  ["torch.HalfStorage", { name: "float16", item_bytes: 2, read_as: "float16" }],
  ["torch.BFloat16Storage", { name: "bfloat16", item_bytes: 2, read_as: "bfloat16" }],
  ["torch.DoubleStorage", { name: "float64", item_bytes: 8, read_as: "float32", converted: "F64" }],
  ["torch.LongStorage", { name: "int64", item_bytes: 8 }],
  ["torch.IntStorage", { name: "int32", item_bytes: 4 }],
  ["torch.ShortStorage", { name: "int16", item_bytes: 2 }],
  ["torch.CharStorage", { name: "int8", item_bytes: 1 }],
  ["torch.ByteStorage", { name: "uint8", item_bytes: 1 }],
  ["torch.BoolStorage", { name: "bool", item_bytes: 1 }],
  ["torch.ComplexFloatStorage", { name: "complex64", item_bytes: 8 }],
  ["torch.ComplexDoubleStorage", { name: "complex128", item_bytes: 16 }],
] satisfies [string, Dtype][]);
/** Untyped bytes; the tensors on them name their dtype. */
const UNTYPED_STORAGE = "torch.storage.UntypedStorage";
/** The dtypes of such tensors, which torch added in 2.1. */
const NEW_DTYPES: ReadonlyMap<string, Dtype> = new Map(
  [
    new_float("float8_e4m3fn", "F8_E4M3"),
    new_float("float8_e4m3fnuz", "F8_E4M3FNUZ"),
    new_float("float8_e5m2", "F8_E5M2"),
    new_float("float8_e5m2fnuz", "F8_E5M2FNUZ"),
    { name: "float8_e8m0fnu", item_bytes: 1 },
    { name: "float4_e2m1fn_x2", item_bytes: 1 },
    { name: "uint16", item_bytes: 2 },
    { name: "uint32", item_bytes: 4 },
    { name: "uint64", item_bytes: 8 },
    { name: "complex32", item_bytes: 4 },
  ].map((dtype) => [`torch.${dtype.name}`, dtype]),
);
const ORDERED_DICT = "collections.OrderedDict";
const REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2";
const REBUILD_TENSOR_3 = "torch._utils._rebuild_tensor_v3";
const REBUILD_PARAMETER = "torch._utils._rebuild_parameter";
const GLOBALS: ReadonlySet<string> = new Set([
  ...STORAGE_TYPES.keys(),
  ...NEW_DTYPES.keys(),
  UNTYPED_STORAGE,
  ORDERED_DICT,
  REBUILD_TENSOR,
  REBUILD_TENSOR_3,
  REBUILD_PARAMETER,
]);
/** Keys under which training scripts store the state dict. */
const NESTED_KEYS = ["state_dict", "model", "target_encoder"];
const MAX_PICKLE_BYTES = 64 * 1024 * 1024;
/** A non-contiguous view is gathered from its whole span in memory. */
const MAX_SPAN_BYTES = 1024 * 1024 * 1024;
/** Max bytes of all such spans of a file, in multiples of its size: enough for one slice of a tensor per layer. */
const MAX_SPANS = 32;
const MAX_RANK = 64;
const LOCATE_AT_ONCE = 32;
/** The first bytes of the format before PyTorch 1.6: protocol 2 and its magic number. */
const LEGACY_HEAD = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46];

function new_float(name: string, converted: string): Dtype {
  return { name, item_bytes: 1, read_as: "float32", converted };
}

/** The bytes behind one or more tensors: one member of the zip file. */
class Storage {
  /** undefined if each tensor names its dtype. */
  readonly dtype: Dtype | undefined;
  readonly entry: StoredEntry;
  /** Where the data starts in the file; known once the entry's local header was read. */
  start = -1;
  #checked = 0;
  #crc32 = 0;

  constructor(dtype: Dtype | undefined, entry: StoredEntry) {
    this.dtype = dtype;
    this.entry = entry;
  }

  /** Reads a part. If all parts are read in order, the CRC-32 is verified along the way. */
  async read(file: RandomAccessFile, offset: number, length: number): Promise<Uint8Array> {
    const bytes = await file.read(this.start + offset, length);
    if (offset === 0) this.#crc32 = this.#checked = 0;
    if (offset === this.#checked) {
      this.#crc32 = crc32(bytes, this.#crc32);
      this.#checked += length;
      if (this.#checked === this.entry.size) check_crc32(file, this.entry, this.#crc32);
    }
    return bytes;
  }
}

function check_crc32(file: RandomAccessFile, entry: StoredEntry, found: number): void {
  if (entry.crc32 === 0 || entry.crc32 === found) return;
  throw broken(
    file.name,
    `is damaged: the CRC-32 of ${entry.text} doesn't match the archive's; download the file again`,
  );
}

/** A view of a storage, in elements. */
interface TensorView {
  readonly storage: Storage;
  readonly dtype: Dtype;
  readonly offset: number;
  readonly dims: readonly number[];
  readonly strides: readonly number[];
}

/** The tensors of a torch.save file, and the keys and dtypes of those that can't be read. */
export interface PytorchTensors {
  tensors: CheckpointTensor[];
  unreadable: Map<string, string>;
}

/**
 * Reads a file of torch.save (since PyTorch 1.6): a zip file with a pickle and one member per storage. The pickle may
 * build tensors and dicts and nothing else.
 */
export async function read_pytorch_bin(file: RandomAccessFile): Promise<PytorchTensors> {
  const { root, tensors_of } = await open_torch_archive(file);
  return tensors_of(find_state_dict(root, file.name));
}

/** A torch.save file of which only the pickle was read. */
export interface TorchArchive {
  /** Dicts (PickleDict), tuples (PickleTuple), lists, strings, numbers; tensors are opaque. It may contain itself. */
  root: unknown;
  /** The tensors among a dict's values, by their keys. */
  tensors_of(dict: ReadonlyMap<unknown, unknown>): PytorchTensors;
}

/** Opens any file of torch.save. @throws VitMsnError INVALID_CHECKPOINT or UNSUPPORTED. */
export async function open_torch_archive(file: RandomAccessFile): Promise<TorchArchive> {
  await refuse_other_formats(file);
  const entries = await read_zip(file);
  const prefix = find_prefix(entries, file.name);
  await check_byte_order(file, entries.get(`${prefix}byteorder`));
  const storages = new Map<string, Storage>();
  const root = await read_pickle(file, entries, prefix, storages);
  await locate_storages(file, [...storages.values()]);
  const reader = new ViewReader(file);
  return { root, tensors_of: (dict) => make_tensors(reader, views_of(dict)) };
}

async function refuse_other_formats(file: RandomAccessFile): Promise<void> {
  await refuse_lookalikes(file);
  const head = await file.read(0, Math.min(LEGACY_HEAD.length, file.size));
  if (LEGACY_HEAD.every((byte, i) => head[i] === byte)) {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${file.name} is in the format of PyTorch before 1.6, which isn't supported. Convert it once in Python: ` +
        'safetensors.torch.save_file(torch.load("pytorch_model.bin", weights_only=True), "model.safetensors").',
      { details: { file: file.name } },
    );
  }
  if (head[0] !== 0x50 || head[1] !== 0x4b)
    throw broken(file.name, "wasn't written by torch.save: it doesn't begin like a zip file");
}

/** The archive's folder: "archive/", "pytorch_model/" or any other. */
function find_prefix(entries: ReadonlyMap<string, StoredEntry>, name: string): string {
  const pickles = [...entries.keys()].filter((entry) => /^(?:[^/]*\/)?data\.pkl$/.test(entry));
  if (pickles.length !== 1)
    throw broken(name, `contains ${pickles.length} files named data.pkl, but torch.save writes one`);
  return (pickles[0] as string).slice(0, -"data.pkl".length);
}

async function check_byte_order(file: RandomAccessFile, entry: StoredEntry | undefined): Promise<void> {
  if (!entry) return;
  if (entry.size > 16) throw broken(file.name, "has a byteorder that is neither little nor big");
  const start = await locate_entry(file, entry);
  const order = String.fromCharCode(...(await file.read(start, entry.size)));
  if (order === "little") return;
  throw new VitMsnError(
    "UNSUPPORTED",
    `${file.name} was saved in the byte order ${JSON.stringify(order)}; only "little" is supported.`,
    {
      details: { file: file.name, order },
    },
  );
}

async function read_pickle(
  file: RandomAccessFile,
  entries: ReadonlyMap<string, StoredEntry>,
  prefix: string,
  storages: Map<string, Storage>,
): Promise<unknown> {
  const entry = entries.get(`${prefix}data.pkl`) as StoredEntry;
  if (entry.size > MAX_PICKLE_BYTES)
    throw broken(file.name, `has a data.pkl of ${entry.size} bytes, more than ${MAX_PICKLE_BYTES}`);
  const bytes = await file.read(await locate_entry(file, entry), entry.size);
  check_crc32(file, entry, crc32(bytes));
  return unpickle(bytes, file.name, {
    globals: GLOBALS,
    persistent_load: (id) =>
      load_storage(id, (key) => entries.get(`${prefix}data/${key}`), storages, file.name),
    reduce: (callee, args) => reduce(callee, args, file.name),
  });
}

/** ("storage", storage type, key, location, element count) */
function load_storage(
  id: unknown,
  find: (key: string) => StoredEntry | undefined,
  storages: Map<string, Storage>,
  file: string,
): Storage {
  const [tag, global, key, , count] = id instanceof PickleTuple ? id.items : [];
  const name = global instanceof PickleGlobal ? global.name : "";
  const dtype = STORAGE_TYPES.get(name);
  const is_known = dtype !== undefined || name === UNTYPED_STORAGE;
  if (tag !== "storage" || !is_known || typeof key !== "string" || !is_size(count)) {
    throw broken(file, "refers to a storage in an unknown form");
  }
  const entry = find(key);
  if (!entry)
    throw broken(
      file,
      `refers to the storage ${JSON.stringify(key.slice(0, 200))}, which the file doesn't contain`,
    );
  const item_bytes = dtype?.item_bytes ?? 1;
  if (count * item_bytes !== entry.size) {
    throw broken(
      file,
      `claims ${count} elements of ${item_bytes} bytes in ${entry.text}, which has ${entry.size} bytes`,
    );
  }
  const known = storages.get(key);
  if (known && known.dtype !== dtype)
    throw broken(file, `reads the storage ${JSON.stringify(key)} as two types`);
  const storage = known ?? new Storage(dtype, entry);
  storages.set(key, storage);
  return storage;
}

function reduce(callee: PickleGlobal, args: readonly unknown[], file: string): unknown {
  switch (callee.name) {
    case ORDERED_DICT:
      if (args.length !== 0) throw broken(file, "creates an OrderedDict in an unknown form");
      return new PickleDict();
    case REBUILD_TENSOR:
      return rebuild_tensor(args, storage_dtype(args[0]), file);
    case REBUILD_TENSOR_3:
      return rebuild_tensor(args, new_dtype(args[6]), file);
    case REBUILD_PARAMETER:
      if (!is_view(args[0])) throw broken(file, "creates a parameter from something that isn't a tensor");
      return args[0];
    default:
      throw refuse_pickle(file, `a call of ${callee.name}`);
  }
}

function storage_dtype(storage: unknown): Dtype | undefined {
  return storage instanceof Storage ? storage.dtype : undefined;
}

function new_dtype(global: unknown): Dtype | undefined {
  return global instanceof PickleGlobal ? NEW_DTYPES.get(global.name) : undefined;
}

/** (storage, storage offset, size, stride, requires_grad, backward hooks[, dtype][, metadata]) */
function rebuild_tensor(args: readonly unknown[], dtype: Dtype | undefined, file: string): TensorView {
  const [storage, offset, size, stride] = args;
  const dims = size instanceof PickleTuple ? size.items : [];
  const strides = stride instanceof PickleTuple ? stride.items : [];
  const sound =
    storage instanceof Storage &&
    dtype !== undefined &&
    (storage.dtype === undefined || storage.dtype === dtype) &&
    is_size(offset) &&
    size instanceof PickleTuple &&
    stride instanceof PickleTuple &&
    dims.length === strides.length &&
    dims.length <= MAX_RANK &&
    dims.every(is_size) &&
    strides.every(is_size);
  if (!sound) throw broken(file, "creates a tensor in an unknown form");
  const view = { storage, dtype, offset, dims, strides };
  check_view(view, file);
  return view;
}

function is_view(value: unknown): value is TensorView {
  return (
    typeof value === "object" && value !== null && "storage" in value && value.storage instanceof Storage
  );
}

/** A view must lie inside its storage and not repeat it: otherwise it could claim more memory than the file has. */
function check_view({ storage, dtype, offset, dims, strides }: TensorView, file: string): void {
  const held = Math.floor(storage.entry.size / dtype.item_bytes);
  const count = element_count(dims);
  const last = dims.reduce((sum, dim, i) => sum + (dim - 1) * (strides[i] as number), offset);
  const inside = count === 0 ? offset <= held : last < held && count <= held;
  if (!Number.isSafeInteger(count) || !inside) {
    throw broken(
      file,
      `has a tensor of shape [${dims}] that doesn't fit its storage ${storage.entry.text} of ${held} elements`,
    );
  }
}

/** The dict of tensors: the pickle, or its value under "state_dict", "model" or "target_encoder" (MSN's training). */
function find_state_dict(root: unknown, file: string): PickleDict {
  const nested = NESTED_KEYS.map((key) => (root instanceof PickleDict ? root.get(key) : undefined));
  const dict = nested.find((value) => value instanceof PickleDict) ?? root;
  if (!(dict instanceof PickleDict))
    throw broken(file, "doesn't contain a dict of tensors; save model.state_dict(), not the model");
  if (views_of(dict).size === 0)
    throw broken(file, "contains a dict without tensors; save model.state_dict()");
  return dict;
}

function views_of(dict: ReadonlyMap<unknown, unknown>): Map<string, TensorView> {
  const views = new Map<string, TensorView>();
  for (const [key, value] of dict) {
    if (typeof key === "string" && is_view(value)) views.set(key, value);
  }
  return views;
}

async function locate_storages(file: RandomAccessFile, storages: readonly Storage[]): Promise<void> {
  for (let i = 0; i < storages.length; i += LOCATE_AT_ONCE) {
    const some = storages.slice(i, i + LOCATE_AT_ONCE);
    await Promise.all(
      some.map(async (storage) => {
        storage.start = await locate_entry(file, storage.entry);
      }),
    );
  }
}

function make_tensors(reader: ViewReader, views: ReadonlyMap<string, TensorView>): PytorchTensors {
  const result: PytorchTensors = { tensors: [], unreadable: new Map() };
  for (const [key, view] of views) {
    const { name, read_as: dtype, converted } = view.dtype;
    if (dtype === undefined) result.unreadable.set(key, name);
    else {
      const plain = reader.tensor(key, view);
      const read = (converted !== undefined && as_float32(converted, plain)) || plain;
      result.tensors.push({ key, file: reader.file.name, dtype, dims: view.dims, read });
    }
  }
  return result;
}

/**
 * Reads the views of a file's storages. Views may share bytes, so a small file could contain any number of tensors, and
 * a tensor of a few bytes could span the file. The file's size bounds both.
 */
class ViewReader {
  readonly file: RandomAccessFile;
  #bytes = 0;
  #span_bytes = 0;
  /** The last span, often needed again: large tensors are read in pieces, and slices of a storage are adjacent. */
  #span: { storage: Storage; start: number; bytes: Uint8Array } | undefined;

  constructor(file: RandomAccessFile) {
    this.file = file;
  }

  /** Reads bytes of the view's elements in row-major order. */
  tensor(key: string, view: TensorView): (start: number, length: number) => Promise<Uint8Array> {
    let is_counted = false;
    return async (start, length) => {
      if (!is_counted) this.#count(view);
      is_counted = true;
      return this.#read(key, view, start, length);
    };
  }

  #count(view: TensorView): void {
    const { file } = this;
    this.#bytes += element_count(view.dims) * view.dtype.item_bytes;
    if (this.#bytes > file.size) {
      throw broken(
        file.name,
        `has ${file.size} bytes, fewer than its tensors, which share storage; save each with .clone()`,
      );
    }
  }

  async #read(key: string, view: TensorView, start: number, length: number): Promise<Uint8Array> {
    const { file } = this;
    const { storage, offset, dims, dtype } = view;
    const size = element_count(dims) * dtype.item_bytes;
    if (!is_size(start) || !is_size(length) || start + length > size) {
      throw broken(
        file.name,
        `can't provide bytes ${start} to ${start + length} of the tensor ${JSON.stringify(key)}, which has ${size}`,
      );
    }
    if (length === 0) return new Uint8Array(0);
    if (is_contiguous(view)) return storage.read(file, offset * dtype.item_bytes + start, length);
    return gather(await this.#read_span(key, view), view, start, length);
  }

  /** The bytes that contain all of a transposed or sliced view. */
  async #read_span(key: string, view: TensorView): Promise<Uint8Array> {
    const { storage, offset, dtype } = view;
    const first = offset * dtype.item_bytes;
    const end = first + span_bytes(view);
    if (end - first > MAX_SPAN_BYTES) {
      throw new VitMsnError(
        "UNSUPPORTED",
        `${this.file.name}: the tensor ${JSON.stringify(key)} isn't stored contiguously and spans ${end - first} bytes, more than ` +
          `${MAX_SPAN_BYTES}. Save it with .contiguous().`,
        { details: { file: this.file.name, key } },
      );
    }
    const last = this.#span;
    const is_held = last?.storage === storage && last.start <= first && end <= last.start + last.bytes.length;
    const span = is_held ? last : await this.#next_span(storage, first, end);
    this.#span = span;
    return span.bytes.subarray(first - span.start, end - span.start);
  }

  /** Reads a span, or the whole storage if that is little more, since other slices of it probably follow. */
  async #next_span(storage: Storage, first: number, end: number) {
    const { file } = this;
    const { size } = storage.entry;
    const is_most = size <= Math.min(2 * (end - first), MAX_SPAN_BYTES);
    const [start, length] = is_most ? [0, size] : [first, end - first];
    this.#span_bytes += length;
    if (this.#span_bytes > MAX_SPANS * file.size) {
      throw broken(
        file.name,
        `has non-contiguous tensors whose spans add up to more than ${MAX_SPANS} times the file; save them with .contiguous()`,
      );
    }
    this.#span = undefined;
    return { storage, start, bytes: await file.read(storage.start + start, length) };
  }
}

function span_bytes({ dims, strides, dtype }: TensorView): number {
  return dims.reduce((sum, dim, i) => sum + (dim - 1) * (strides[i] as number), 1) * dtype.item_bytes;
}

function is_contiguous({ dims, strides }: TensorView): boolean {
  let expected = 1;
  for (let i = dims.length - 1; i >= 0; i--) {
    const dim = dims[i] as number;
    if (dim !== 1 && strides[i] !== expected) return false;
    expected *= dim;
  }
  return true;
}

/** Bytes of a view's elements in order, picked from its span. */
function gather(source: Uint8Array, view: TensorView, start: number, length: number): Uint8Array {
  const item = view.dtype.item_bytes;
  const result = new Uint8Array(length);
  const first = Math.floor(start / item);
  const positions = element_positions(view, first);
  for (let at = first * item; at < start + length; at += item) {
    const from = (positions.next().value as number) * item;
    for (let byte = 0; byte < item; byte++) {
      const to = at + byte - start;
      if (to >= 0 && to < length) result[to] = source[from + byte] as number;
    }
  }
  return result;
}

/** The storage position of each element starting at `first`, in row-major order, relative to the view's offset. */
function* element_positions({ dims, strides }: TensorView, first: number): Generator<number, never> {
  const index = new Array<number>(dims.length).fill(0);
  let position = 0;
  for (let axis = dims.length - 1, rest = first; axis >= 0; axis--) {
    const dim = dims[axis] as number;
    index[axis] = rest % dim;
    position += (rest % dim) * (strides[axis] as number);
    rest = Math.floor(rest / dim);
  }
  for (;;) {
    yield position;
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      const dim = dims[axis] as number;
      const stride = strides[axis] as number;
      index[axis] = (index[axis] as number) + 1;
      position += stride;
      if ((index[axis] as number) < dim) break;
      index[axis] = 0;
      position -= dim * stride;
    }
  }
}

function is_size(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function broken(name: string, what: string): VitMsnError {
  return new VitMsnError("INVALID_CHECKPOINT", `${name} ${what}.`, { details: { file: name } });
}
