import type { WeightDtype } from "../dtypes.ts";
/** The argument of a progress callback, by status; the fields are those of transformers.js. */
export type ProgressInfo = FileInitiated | FileProgress | ModelReady;

interface ProgressBase {
  /** The model's name: the folder, repo id or URL given to from_pretrained. */
  name: string;
}

/** A file is requested. */
export interface FileInitiated extends ProgressBase {
  status: "initiate";
  /** The file's name, such as "model.safetensors". */
  file: string;
  loaded?: undefined;
  total?: undefined;
  progress?: undefined;
}

/** A file's bytes arrive, or it is complete. */
export interface FileProgress extends ProgressBase {
  status: "progress" | "done";
  /** The file's name, such as "model.safetensors". */
  file: string;
  /** Bytes so far. */
  loaded: number;
  /** Total bytes; 0 if the server doesn't report them. */
  total: number;
  /** Percentage, 0 to 100. */
  progress: number;
}

/** The model can be used. */
export interface ModelReady extends ProgressBase {
  status: "ready";
  file?: undefined;
  loaded?: undefined;
  total?: undefined;
  progress?: undefined;
}

export type ProgressCallback = (info: ProgressInfo) => void;

/** A file itself, or the URL of one. */
type MappedFile = Blob | ArrayBuffer | Uint8Array | URL;

/**
 * Files by name, for models that are already in the page (a picked or dropped folder, or bytes from anywhere), or whose
 * files have separate URLs, such as a bundler's assets.
 */
export type FileMap = Record<string, MappedFile> | Map<string, MappedFile>;

/** The source of a model: a local folder (path or file: URL), a hub repo id, a base URL, or its files themselves. */
export type PretrainedSource = string | URL | FileMap;

/** The options of every from_pretrained that determine where files come from. */
export interface LoadOptions {
  /** Branch, tag or commit of a hub repository; default "main". */
  revision?: string;
  /** Folder inside the repository or folder; default "". */
  subfolder?: string;
  /**
   * Node, Deno, Bun: the folder that caches downloads and the tiles that model.tune() chooses; default env.cache_dir.
   */
  cache_dir?: string;
  /** Never touch the network; default false. */
  local_files_only?: boolean;
  /**
   * Hub access token for gated and private repositories; default the HF_TOKEN environment variable. Only sent to
   * env.remote_host.
   */
  token?: string;
  progress_callback?: ProgressCallback;
  signal?: AbortSignal;
}

/** A file that is read in pieces, so that a checkpoint is never in memory together with the weights made from it. */
export interface RandomAccessFile {
  /** For messages: the path or URL. */
  readonly name: string;
  readonly size: number;
  /**
   * Exactly `length` bytes from `offset`; throws INVALID_CHECKPOINT past the end. The caller may hold or change them
   * unless the source was a caller's buffer.
   */
  read(offset: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** An opened source, whose file names are relative to the model's folder. */
export interface ModelSource {
  /** For messages: the folder, repo id or URL. */
  readonly name: string;
  /** The options that it was opened with. */
  readonly options?: LoadOptions;
  /**
   * The file, or undefined if the source certainly lacks it (404, no such path). Other failures throw.
   * @param max_bytes longer downloads are refused.
   */
  open(file: string, max_bytes?: number): Promise<RandomAccessFile | undefined>;
}

/** int8 values need their scales: `<key>_scale`, see ARCHITECTURE.md. */

/** One tensor of a checkpoint, which isn't read yet. */
export interface CheckpointTensor {
  /** The key as stored in the file. */
  readonly key: string;
  /** The file that contains it, for messages. */
  readonly file: string;
  /** The dtype as read: a file's float64 and float8 become float32. */
  readonly dtype: WeightDtype;
  readonly dims: readonly number[];
  /** Bytes [start, start+length) of the tensor's row-major little-endian data. */
  read(start: number, length: number): Promise<Uint8Array>;
}

/** All tensors of a checkpoint of any file format and number of shards. */
export interface Checkpoint {
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** Keys of tensors whose dtype can't be read, with that dtype (an int64 position_ids buffer, for example). */
  readonly unreadable: ReadonlyMap<string, string>;
  close(): Promise<void>;
}
