import { MultiBar, Presets, type SingleBar } from "cli-progress";
import {
  type PretrainedOptions,
  type ProgressCallback,
  type ProgressInfo,
  RawImage,
  VitMsnError,
} from "../index.ts";

/** The options that commander parsed, common to all commands. */
export interface ModelFlags {
  model?: string;
  revision: string;
  cacheDir?: string;
  localFilesOnly?: boolean;
  dtype: "float32" | "float16" | "bfloat16" | "int8";
  attn: "sdpa" | "eager";
  threads: number;
  quiet?: boolean;
}

/** Loads a pipeline under progress bars on standard error. */
export async function load<P>(
  flags: ModelFlags,
  signal: AbortSignal,
  make: (options: PretrainedOptions) => Promise<P>,
): Promise<P> {
  const bars = new DownloadBars(flags.quiet !== true);
  try {
    return await make({
      revision: flags.revision,
      cache_dir: flags.cacheDir,
      local_files_only: flags.localFilesOnly,
      dtype: flags.dtype,
      attn_implementation: flags.attn,
      num_threads: flags.threads,
      progress_callback: bars.callback,
      signal,
    });
  } finally {
    bars.stop();
  }
}

/** Runs `body` for every picture; one that fails is reported and doesn't stop the others. Gives the exit code. */
export async function for_each_image(
  images: readonly string[],
  signal: AbortSignal,
  body: (name: string, image: RawImage) => Promise<void>,
): Promise<number> {
  let exit_code = 0;
  for (const name of images) {
    try {
      await body(name, await read_image(name, signal));
    } catch (error) {
      if (!(error instanceof VitMsnError) || error.code === "ABORTED" || error.code === "ENGINE_DEAD")
        throw error;
      console.error(`vit-msn: ${error.message} [${error.code}]`);
      exit_code = 1;
    }
  }
  return exit_code;
}

async function read_image(name: string, signal: AbortSignal): Promise<RawImage> {
  if (name !== "-") return RawImage.read(name, { signal });
  const chunks: Uint8Array[] = [];
  for await (const chunk of process.stdin) chunks.push(chunk as Uint8Array);
  return RawImage.read(Buffer.concat(chunks), { signal });
}

/** One bar a file that is downloaded; nothing where standard error is no terminal. */
class DownloadBars {
  readonly #bars = new Map<string, SingleBar>();
  readonly #multi: MultiBar | undefined;

  constructor(wanted: boolean) {
    if (!wanted || !process.stderr.isTTY) return;
    const format = "{file} [{bar}] {percentage}% | {value}/{total} bytes | {eta} s left";
    const options = { format, stream: process.stderr, hideCursor: true, clearOnComplete: true };
    this.#multi = new MultiBar(options, Presets.shades_classic);
  }

  readonly callback: ProgressCallback = ({ status, file, loaded = 0, total = 0 }: ProgressInfo) => {
    if (this.#multi === undefined || file === undefined) return;
    if (status !== "progress" && status !== "done") return;
    let bar = this.#bars.get(file);
    if (bar === undefined) {
      bar = this.#multi.create(Math.max(total, loaded), loaded, { file });
      this.#bars.set(file, bar);
    }
    bar.setTotal(Math.max(total, loaded));
    bar.update(loaded);
  };

  stop(): void {
    this.#multi?.stop();
  }
}
