import { VitMsnError } from "../../errors.ts";
import { refuse_lookalikes } from "../bytes.ts";
import type { CheckpointDtype, CheckpointTensor, RandomAccessFile } from "../types.ts";
import { PickleDict, PickleGlobal, PickleTuple, refuse_pickle, unpickle } from "./pickle.ts";
import { element_count } from "./safetensors.ts";
import { locate_entry, read_zip, type ZipEntry } from "./zip.ts";

/** Bytes of an element and, for the dtypes that a model can use, its name. */
interface StorageType {
  item_bytes: number;
  dtype?: CheckpointDtype;
}

const STORAGE_TYPES: ReadonlyMap<string, StorageType> = new Map([
  ["torch.FloatStorage", { item_bytes: 4, dtype: "float32" }],
  ["torch.HalfStorage", { item_bytes: 2, dtype: "float16" }],
  ["torch.BFloat16Storage", { item_bytes: 2, dtype: "bfloat16" }],
  ["torch.DoubleStorage", { item_bytes: 8 }],
  ["torch.LongStorage", { item_bytes: 8 }],
  ["torch.IntStorage", { item_bytes: 4 }],
  ["torch.ShortStorage", { item_bytes: 2 }],
  ["torch.CharStorage", { item_bytes: 1 }],
  ["torch.ByteStorage", { item_bytes: 1 }],
  ["torch.BoolStorage", { item_bytes: 1 }],
] satisfies [string, StorageType][]);
const ORDERED_DICT = "collections.OrderedDict";
const REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2";
const REBUILD_PARAMETER = "torch._utils._rebuild_parameter";
const GLOBALS: ReadonlySet<string> = new Set([
  ...STORAGE_TYPES.keys(),
  ORDERED_DICT,
  REBUILD_TENSOR,
  REBUILD_PARAMETER,
]);
/** Keys under which training scripts keep the state dict. */
const NESTED_KEYS = ["state_dict", "model", "target_encoder"];
const MAX_PICKLE_BYTES = 64 * 1024 * 1024;
/** A view that isn't contiguous is gathered from its whole span in memory. */
const MAX_SPAN_BYTES = 1024 * 1024 * 1024;
const MAX_RANK = 64;
const LOCATE_AT_ONCE = 32;
/** How the format of PyTorch before 1.6 begins: protocol 2 and its magic number. */
const LEGACY_HEAD = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46];

/** The bytes behind one or more tensors: one member of the zip file. */
class Storage {
  readonly type: StorageType;
  readonly count: number;
  readonly entry: ZipEntry;
  /** Where the data starts in the file; known once the entry's local header was read. */
  start = -1;

  constructor(type: StorageType, count: number, entry: ZipEntry) {
    this.type = type;
    this.count = count;
    this.entry = entry;
  }
}

/** A view of a storage, in elements. */
class TensorView {
  readonly storage: Storage;
  readonly offset: number;
  readonly dims: readonly number[];
  readonly strides: readonly number[];

  constructor(storage: Storage, offset: number, dims: readonly number[], strides: readonly number[]) {
    this.storage = storage;
    this.offset = offset;
    this.dims = dims;
    this.strides = strides;
  }
}

/** The tensors of a torch.save file, and the keys of those whose dtype no model uses. */
export interface PytorchTensors {
  tensors: CheckpointTensor[];
  other_keys: string[];
}

/**
 * Reads what torch.save writes (since PyTorch 1.6): a zip file of a pickle and one member per storage. The pickle
 * may build tensors and dicts and nothing else.
 */
export async function read_pytorch_bin(file: RandomAccessFile): Promise<PytorchTensors> {
  const { root, tensors_of } = await open_torch_archive(file);
  return tensors_of(find_state_dict(root, file.name));
}

/** What torch.save wrote, of which nothing but the pickle was read yet. */
export interface TorchArchive {
  /** Dicts as PickleDict, tuples as PickleTuple, lists, strings, numbers; tensors are opaque. It may contain itself. */
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
  return { root, tensors_of: (dict) => make_tensors(file, views_of(dict)) };
}

async function refuse_other_formats(file: RandomAccessFile): Promise<void> {
  await refuse_lookalikes(file);
  const head = await file.read(0, Math.min(LEGACY_HEAD.length, file.size));
  if (LEGACY_HEAD.every((byte, i) => head[i] === byte)) {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${file.name} is in the format of PyTorch before 1.6, which isn't read here. Convert it once in Python: ` +
        'safetensors.torch.save_file(torch.load("pytorch_model.bin", weights_only=True), "model.safetensors").',
      { details: { file: file.name } },
    );
  }
  if (head[0] !== 0x50 || head[1] !== 0x4b)
    throw broken(file.name, "is no file of torch.save: it doesn't begin as a zip file");
}

/** The archive's folder: "archive/", "pytorch_model/" or any other. */
function find_prefix(entries: ReadonlyMap<string, ZipEntry>, name: string): string {
  const pickles = [...entries.keys()].filter((entry) => /^(?:[^/]*\/)?data\.pkl$/.test(entry));
  if (pickles.length !== 1)
    throw broken(name, `holds ${pickles.length} files data.pkl where torch.save writes one`);
  return (pickles[0] as string).slice(0, -"data.pkl".length);
}

async function check_byte_order(file: RandomAccessFile, entry: ZipEntry | undefined): Promise<void> {
  if (!entry) return;
  if (entry.size > 16) throw broken(file.name, "has a byteorder that is neither little nor big");
  const start = await locate_entry(file, entry);
  const order = String.fromCharCode(...(await file.read(start, entry.size)));
  if (order === "little") return;
  throw new VitMsnError(
    "UNSUPPORTED",
    `${file.name} was saved in the byte order ${JSON.stringify(order)}; only "little" is read.`,
    {
      details: { file: file.name, order },
    },
  );
}

async function read_pickle(
  file: RandomAccessFile,
  entries: ReadonlyMap<string, ZipEntry>,
  prefix: string,
  storages: Map<string, Storage>,
): Promise<unknown> {
  const entry = entries.get(`${prefix}data.pkl`) as ZipEntry;
  if (entry.size > MAX_PICKLE_BYTES)
    throw broken(file.name, `has a data.pkl of ${entry.size} bytes, more than ${MAX_PICKLE_BYTES}`);
  const bytes = await file.read(await locate_entry(file, entry), entry.size);
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
  find: (key: string) => ZipEntry | undefined,
  storages: Map<string, Storage>,
  file: string,
): Storage {
  const [tag, global, key, , count] = id instanceof PickleTuple ? id.items : [];
  const type = global instanceof PickleGlobal ? STORAGE_TYPES.get(global.name) : undefined;
  if (tag !== "storage" || !type || typeof key !== "string" || !is_size(count)) {
    throw broken(file, "refers to a storage in an unknown form");
  }
  const entry = find(key);
  if (!entry)
    throw broken(file, `refers to the storage ${JSON.stringify(key.slice(0, 200))}, which it doesn't hold`);
  if (count * type.item_bytes !== entry.size) {
    throw broken(
      file,
      `claims ${count} elements of ${type.item_bytes} bytes in ${entry.name}, which has ${entry.size} bytes`,
    );
  }
  const known = storages.get(key);
  if (known && known.type !== type)
    throw broken(file, `reads the storage ${JSON.stringify(key)} as two types`);
  const storage = known ?? new Storage(type, count, entry);
  storages.set(key, storage);
  return storage;
}

function reduce(callee: PickleGlobal, args: readonly unknown[], file: string): unknown {
  switch (callee.name) {
    case ORDERED_DICT:
      if (args.length !== 0) throw broken(file, "makes an OrderedDict in an unknown form");
      return new PickleDict();
    case REBUILD_TENSOR:
      return rebuild_tensor(args, file);
    case REBUILD_PARAMETER:
      if (!(args[0] instanceof TensorView))
        throw broken(file, "makes a parameter of something that isn't a tensor");
      return args[0];
    default:
      throw refuse_pickle(file, `a call of ${callee.name}`);
  }
}

/** (storage, storage offset, size, stride, requires_grad, backward hooks[, metadata]) */
function rebuild_tensor(args: readonly unknown[], file: string): TensorView {
  const [storage, offset, size, stride] = args;
  const dims = size instanceof PickleTuple ? size.items : [];
  const strides = stride instanceof PickleTuple ? stride.items : [];
  const sound =
    storage instanceof Storage &&
    is_size(offset) &&
    size instanceof PickleTuple &&
    stride instanceof PickleTuple &&
    dims.length === strides.length &&
    dims.length <= MAX_RANK &&
    dims.every(is_size) &&
    strides.every(is_size);
  if (!sound) throw broken(file, "makes a tensor in an unknown form");
  const view = new TensorView(storage, offset, dims, strides);
  check_view(view, file);
  return view;
}

/** A view must lie inside its storage and, so that it can't stand for more memory than the file has, not repeat it. */
function check_view({ storage, offset, dims, strides }: TensorView, file: string): void {
  const count = element_count(dims);
  const last = dims.reduce((sum, dim, i) => sum + (dim - 1) * (strides[i] as number), offset);
  const inside = count === 0 ? offset <= storage.count : last < storage.count && count <= storage.count;
  if (!Number.isSafeInteger(count) || !inside) {
    throw broken(
      file,
      `has a tensor of shape [${dims}] that doesn't fit its storage ${storage.entry.name} of ${storage.count} elements`,
    );
  }
}

/** The dict of tensors: the pickle itself, or what a training script keeps under "state_dict" or "model"; MSN's own, under "target_encoder". */
function find_state_dict(root: unknown, file: string): PickleDict {
  const nested = NESTED_KEYS.map((key) => (root instanceof PickleDict ? root.get(key) : undefined));
  const dict = nested.find((value) => value instanceof PickleDict) ?? root;
  if (!(dict instanceof PickleDict))
    throw broken(file, "holds no dict of tensors; save model.state_dict(), not the model");
  if (views_of(dict).size === 0) throw broken(file, "holds no tensors in its dict; save model.state_dict()");
  return dict;
}

function views_of(dict: ReadonlyMap<unknown, unknown>): Map<string, TensorView> {
  const views = new Map<string, TensorView>();
  for (const [key, value] of dict) {
    if (typeof key === "string" && value instanceof TensorView) views.set(key, value);
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

function make_tensors(file: RandomAccessFile, views: ReadonlyMap<string, TensorView>): PytorchTensors {
  const tensors: CheckpointTensor[] = [];
  const other_keys: string[] = [];
  for (const [key, view] of views) {
    const dtype = view.storage.type.dtype;
    if (dtype)
      tensors.push({
        key,
        file: file.name,
        dtype,
        dims: view.dims,
        read: (start, length) => read_view(file, key, view, start, length),
      });
    else other_keys.push(key);
  }
  return { tensors, other_keys };
}

/** Bytes [start, start+length) of the view's elements in row-major order. */
async function read_view(
  file: RandomAccessFile,
  key: string,
  view: TensorView,
  start: number,
  length: number,
): Promise<Uint8Array> {
  const { storage, offset, dims } = view;
  const item = storage.type.item_bytes;
  const size = element_count(dims) * item;
  if (!is_size(start) || !is_size(length) || start + length > size) {
    throw broken(
      file.name,
      `was asked for bytes ${start} to ${start + length} of the tensor ${JSON.stringify(key)}, which has ${size}`,
    );
  }
  if (length === 0) return new Uint8Array(0);
  if (is_contiguous(view)) return file.read(storage.start + offset * item + start, length);
  return gather(file, key, view, start, length);
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

/** Reads a transposed or sliced view: its elements in order, picked from the span of the storage that holds them. */
async function gather(
  file: RandomAccessFile,
  key: string,
  view: TensorView,
  start: number,
  length: number,
): Promise<Uint8Array> {
  const item = view.storage.type.item_bytes;
  const span = view.dims.reduce((sum, dim, i) => sum + (dim - 1) * (view.strides[i] as number), 1) * item;
  if (span > MAX_SPAN_BYTES) {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${file.name}: the tensor ${JSON.stringify(key)} isn't stored contiguously and spans ${span} bytes, more than ` +
        `${MAX_SPAN_BYTES}. Save it with .contiguous().`,
      { details: { file: file.name, key } },
    );
  }
  const source = await file.read(view.storage.start + view.offset * item, span);
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

/** The storage position of each element from the `first` on, in row-major order, relative to the view's offset. */
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
