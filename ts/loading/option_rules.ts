import { DTYPE_ALIASES, WEIGHT_DTYPES } from "../dtypes.ts";
import type { ModelOptions, PretrainedOptions } from "../model/pretrained.ts";
import {
  abort_signal,
  any,
  callable,
  check_options,
  count,
  flag,
  is_record,
  type Rule,
  type Rules,
  text,
  wasm_input,
} from "../options.ts";
import type { SaveOptions } from "./storage_types.ts";
import type { LoadOptions } from "./types.ts";

/** A rule for each option. */
type Of<Options> = Readonly<Record<keyof Options, Rule>>;

/** The options of all functions that write files. */
export const SAVE_RULES: Of<SaveOptions> = { signal: abort_signal, progress_callback: callable };

/** LoadOptions, in addition to SAVE_RULES. */
export const LOAD_RULES: Of<Omit<LoadOptions, keyof SaveOptions>> = {
  revision: text,
  subfolder: text,
  cache_dir: text,
  local_files_only: flag,
  token: text,
};

/** ModelOptions. */
export const MODEL_RULES: Of<ModelOptions> = {
  device: ['"wasm", "webgpu", "auto" or a GPUDevice', is_device],
  num_threads: count,
  worker: flag,
  wasm: wasm_input,
  dtype: [...WEIGHT_DTYPES, ...Object.keys(DTYPE_ALIASES)],
  attn_implementation: ["sdpa", "eager"],
  seed: ["a finite number", Number.isFinite],
};

/** PretrainedOptions, in addition to those. */
export const PRETRAINED_RULES: Of<Omit<PretrainedOptions, keyof ModelOptions | keyof LoadOptions>> = {
  config: any,
  ignore_mismatched_sizes: flag,
};

/**
 * Checks the options of a from_pretrained. Every from_pretrained accepts all of them, so that one object can be passed
 * for a model, its config and its processor.
 * @throws VitMsnError INVALID_ARGUMENT.
 */
export function check_pretrained(
  options: unknown,
  where = "from_pretrained",
  ...more: readonly Rules[]
): void {
  check_options(where, options, ...more, SAVE_RULES, LOAD_RULES, MODEL_RULES, PRETRAINED_RULES);
}

function is_device(value: unknown): boolean {
  if (!is_record(value)) return value === "wasm" || value === "webgpu" || value === "auto";
  const { createComputePipeline, features, limits, queue } = value;
  return typeof createComputePipeline === "function" && Boolean(features && limits && queue);
}
