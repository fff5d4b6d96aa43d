import { env, type PretrainedOptions } from "../../index.ts";
import type { OptionRule } from "../../training/index.ts";
import { default_threads, THREADS_HELP } from "../default_threads.ts";
import { ATTENTIONS, WIDE_HELP } from "../model_options.ts";
import { type LogFlags, REPORT_TO } from "./log_file.ts";
import { data, general, model, type OptionHelp, optimiser, output, training } from "./option_help.ts";

/** An option of a training command: the rule for its value, and its help. */
export type DescribedOption = OptionHelp & { rule: OptionRule };

/** Rules that the commands' own options have. */
export const text: OptionRule = { kind: "text" };
export const texts: OptionRule = { kind: "texts" };
export const flag: OptionRule = { kind: "flag" };
export const positive_integer: OptionRule = { kind: "integer", min: 1, max: Number.MAX_SAFE_INTEGER };
export const choice = (...choices: readonly string[]): OptionRule => ({ kind: "choice", choices });

/** The options that both `train` and `pretrain` add to those of the library. */
export interface SharedFlags {
  max_train_samples?: number;
  unreadable_images?: "error" | "skip";
  resume_from_checkpoint?: string;
  overwrite_output_dir?: boolean;
  report_to?: LogFlags["report_to"];
  logging_dir?: string;
  model_revision?: string;
  cache_dir?: string;
  local_files_only?: boolean;
  token?: string;
  attn_implementation?: "sdpa" | "eager";
  num_threads?: number;
  wide?: boolean;
  quiet?: boolean;
}

export const SHARED_FLAGS: Readonly<Record<keyof SharedFlags, DescribedOption>> = {
  max_train_samples: { rule: positive_integer, ...data("train on up to n images; default: all") },
  unreadable_images: {
    rule: choice("error", "skip"),
    ...data("stop at an image that can't be read or doesn't exist, or skip it; default: error", "action"),
  },
  resume_from_checkpoint: {
    rule: text,
    ...output("resume from this checkpoint: a folder, or the name of one in output_dir", "dir"),
  },
  overwrite_output_dir: {
    rule: flag,
    ...output("start again even if output_dir isn't empty; default: false"),
  },
  report_to: {
    rule: choice(...REPORT_TO),
    ...output("also write the log to log.csv or log.jsonl, entry by entry; default: none", "format"),
  },
  logging_dir: {
    rule: text,
    ...output("write the log that report_to asks for to this folder; default: output_dir", "dir"),
  },
  model_revision: { rule: text, ...model("branch, tag or commit of a hub repo; default: main", "name") },
  cache_dir: {
    rule: text,
    ...model("store downloads in this folder; default: the user's cache folder", "dir"),
  },
  local_files_only: { rule: flag, ...model("never access the network; default: false") },
  token: { rule: text, ...model("hub access token; default: the environment variable HF_TOKEN", "token") },
  attn_implementation: {
    rule: choice(...ATTENTIONS),
    ...model("attention implementation; default: sdpa", "name"),
  },
  num_threads: { rule: positive_integer, ...model(THREADS_HELP) },
  wide: { rule: flag, ...model(`${WIDE_HELP}; default: true`) },
  quiet: { rule: flag, ...general("print no progress; default: false") },
};

/** The options of from_pretrained for these flags. */
export function shared_pretrained_options(flags: SharedFlags, signal: AbortSignal): PretrainedOptions {
  env.wide_vectors = flags.wide ?? true;
  return {
    revision: flags.model_revision,
    cache_dir: flags.cache_dir,
    local_files_only: flags.local_files_only,
    token: flags.token,
    attn_implementation: flags.attn_implementation,
    num_threads: flags.num_threads ?? default_threads(),
    signal,
  };
}

/** Help for the library's options that fine-tuning and pre-training share. */
export const SHARED_TRAINING_HELP = {
  max_steps: training("stop after n optimiser steps; overrides num_train_epochs"),
  gradient_checkpointing: training("save memory at the cost of a third more time; default: false"),
  seed: training("seed of all randomness that data_seed doesn't cover; default: 42"),
  adam_beta1: optimiser("first decay rate of AdamW; default: 0.9"),
  adam_beta2: optimiser("second decay rate of AdamW; default: 0.999"),
  adam_epsilon: optimiser("epsilon of AdamW; default: 1e-8"),
  save_strategy: output("when to save checkpoints; default: steps", "when"),
  save_steps: output("steps between checkpoints; default: 500"),
  save_total_limit: output("number of checkpoints to retain; default: all"),
  logging_first_step: output("also log the first step; default: false"),
} satisfies Record<string, OptionHelp>;
