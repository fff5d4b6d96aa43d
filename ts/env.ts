import { default_fetch, default_host, offline_variable } from "#environment";
import type { ImageFormat } from "./image/formats.ts";

/** How WebGPU is found. */
export interface WebGpuEnv {
  /** The source of adapters; default the runtime's `navigator.gpu`, or the package webgpu in Node without it. */
  gpu: GPU | undefined;
  /**
   * Whether to accept an adapter that is software on the CPU. Default: yes for device "webgpu"; "auto" uses the CPU
   * engine instead, which is faster.
   */
  allow_software: boolean | undefined;
}

/**
 * Pixels of an image, row by row from the top, 1 to 4 bytes each: grey, grey with alpha, RGB or RGBA. ImageData fits.
 */
export interface DecodedImage {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

/** What is known about an image file before it is decoded. */
export interface ImageToDecode {
  readonly format: ImageFormat;
  readonly mime: string;
  /** For messages: the path or URL. */
  readonly name: string;
  readonly signal?: AbortSignal;
}

/**
 * Settings of the whole package, like transformers.js' `env`. Change them before the first from_pretrained. Setting an
 * unknown one, or a value of a wrong type, throws INVALID_ARGUMENT.
 */
export interface Env {
  /** The hub, without a trailing slash; default the environment variable HF_ENDPOINT, else "https://huggingface.co". */
  remote_host: string;
  /** Path of a file below remote_host; default "{model}/resolve/{revision}/". */
  remote_path_template: string;
  /**
   * false: never use the network for a model, like local_files_only on every call; default true, unless HF_HUB_OFFLINE
   * or TRANSFORMERS_OFFLINE is set to 1.
   */
  allow_remote_models: boolean;
  /** Cache downloads and model.tune()'s choices (on disk in Node, in the Cache API in browsers); default true. */
  use_cache: boolean;
  /** The cache folder; default `$XDG_CACHE_HOME/vit-msn`, else `~/.cache/vit-msn`; undefined in browsers. */
  cache_dir: string | undefined;
  /** The Cache API's key in browsers; default "vit-msn". */
  cache_key: string;
  /**
   * Replaces fetch; default the runtime's, in Node through the proxies that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name.
   */
  fetch: typeof fetch;
  /** Whether the hub token may be sent unencrypted (http) to another machine; default false. */
  allow_token_over_http: boolean;
  /** Where warnings go; default console.warn. */
  warn: (message: string) => void;
  /** The engine's WebAssembly: a Module, its bytes, a URL or a Response; default the file next to the JavaScript. */
  wasm: WebAssembly.Module | BufferSource | URL | Response | undefined;
  /**
   * Whether models on the CPU use V8's vectors of 256 bits, which double the speed of float32 on x64 processors with
   * AVX2 without changing a bit of the results. true turns on V8's flag --experimental-wasm-revectorize, for the whole
   * process; Node 24 or newer. Default undefined: if the process was started with that flag. `engine_info` reports
   * whether and, if true, why not.
   */
  wide_vectors: boolean | undefined;
  /**
   * Decodes image files instead of the runtime's decoder, for runtimes without one, such as edge workers. It returns
   * pixels in the file's orientation; EXIF or XMP orientation is applied afterwards (JPEG, PNG, WebP). Default
   * undefined.
   */
  decode: ((bytes: Uint8Array, image: ImageToDecode) => DecodedImage | Promise<DecodedImage>) | undefined;
  /** How WebGPU is found. */
  webgpu: WebGpuEnv;
}

/** The settings that the package reads; users set those of checked_env.ts. */
export const env: Env = {
  remote_host: default_host,
  remote_path_template: "{model}/resolve/{revision}/",
  allow_remote_models: offline_variable === undefined,
  use_cache: true,
  cache_dir: undefined,
  cache_key: "vit-msn",
  fetch: default_fetch,
  allow_token_over_http: false,
  warn: (message) => console.warn(message),
  wasm: undefined,
  wide_vectors: undefined,
  decode: undefined,
  webgpu: { gpu: undefined, allow_software: undefined },
};
