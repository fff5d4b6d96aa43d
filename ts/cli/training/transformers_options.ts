import { CommanderError } from "commander";
import { VitMsnError } from "../../index.ts";

/**
 * Options of transformers' run_image_classification.py and TrainingArguments that `vit-msn train` doesn't have. Some have
 * another name here, some have no effect here, and the rest are refused.
 */
const SAME_AS: Readonly<Record<string, string>> = {
  evaluation_strategy: "eval_strategy",
  per_gpu_train_batch_size: "per_device_train_batch_size",
  per_gpu_eval_batch_size: "per_device_eval_batch_size",
  feature_extractor_name: "image_processor_name",
  disable_tqdm: "quiet",
};

/** Values of options that exist here, maybe under another name. */
const SAME_VALUES: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  optim: { adamw_torch_fused: "adamw_torch", adamw_hf: "adamw_torch" },
  // With one cycle, which is the default.
  lr_scheduler_type: { cosine_with_restarts: "cosine" },
  report_to: { csv: "csv", jsonl: "jsonl" },
};

/** Options without effect here, by the reason. */
const WITHOUT_EFFECT: Readonly<Record<string, string>> = by_name({
  "only the columns of images and labels are read": "remove_unused_columns label_names length_column_name",
  "images are read while the previous step is computed":
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor",
  "training runs in one process, on the CPU":
    "use_cpu no_cuda use_mps_device local_rank ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb " +
    "ddp_broadcast_buffers ddp_timeout ddp_static_graph accelerator_config fsdp_min_num_params fsdp_config " +
    "fsdp_transformer_layer_cls_to_wrap parallelism_config tpu_num_cores tpu_metrics_debug mp_parameters " +
    "average_tokens_across_devices eval_use_gather_object eval_accumulation_steps eval_do_concat_batches " +
    "torch_empty_cache_steps log_on_each_node save_on_each_node log_level_replica ray_scope",
  "nothing is pushed to the hub":
    "hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision push_to_hub_model_id " +
    "push_to_hub_organization push_to_hub_token",
  "curves and logs are in loss_curve.svg and trainer_state.json":
    "run_name project trackio_space_id log_level logging_nan_inf_filter",
  "it only selects how half precision is implemented": "fp16_opt_level half_precision_backend fp16_backend",
  "no code of a model repository is ever run": "trust_remote_code",
  "the same seed always gives identical results": "full_determinism",
  "the script itself ignores it": "do_predict",
  "the token comes from --token or HF_TOKEN": "use_auth_token",
  "it is for text models": "use_cache include_num_input_tokens_seen include_tokens_per_second past_index",
  "it belongs to an unsupported option":
    "torch_compile_backend torch_compile_mode liger_kernel_config gradient_checkpointing_kwargs optim_target_modules",
  "an interrupt always saves a checkpoint": "enable_jit_checkpoint",
  "the states of callbacks are always restored": "restore_callback_states_from_checkpoint",
});

interface Only {
  /** Values without effect; null is always one. */
  allowed: readonly unknown[];
  /** Why others are refused, and what to do instead. */
  why: string;
}

const only = (allowed: readonly unknown[], why: string): Only => ({ allowed, why });
const HALF = only([false], "half precision is chosen by --dtype float16 or bfloat16");
const NO_METRICS = only([false], "compute_metrics is an option of the Trainer in JavaScript");
const NO_HUB_DATA = only(
  [],
  "the data must be local: pass --train_dir or --train_file, such as the data set's Parquet files",
);

/** Options that only some values are allowed for. */
const ONLY: Readonly<Record<string, Only>> = {
  dataset_name: NO_HUB_DATA,
  dataset_config_name: NO_HUB_DATA,
  model_type: only(
    ["vit_msn", "vit-msn"],
    "ViT-MSN is the only architecture; from scratch, use vit-msn pretrain",
  ),
  config_name: only([], "the config comes with the model"),
  fp16: HALF,
  bf16: HALF,
  fp16_full_eval: HALF,
  bf16_full_eval: HALF,
  tf32: only([false], "arithmetic is float32"),
  push_to_hub: only([false], "upload output_dir with huggingface-cli upload"),
  report_to: only(
    ["none", ["none"], []],
    "integrations aren't supported; choose csv or jsonl, or read trainer_state.json",
  ),
  deepspeed: only([], "training runs in one process, on the CPU"),
  fsdp: only(["", false, []], "training runs in one process, on the CPU"),
  sharded_ddp: only(["", false, []], "training runs in one process, on the CPU"),
  torch_compile: only([false], "PyTorch isn't used"),
  jit_mode_eval: only([false], "PyTorch isn't used"),
  use_ipex: only([false], "PyTorch isn't used"),
  torchdynamo: only([], "PyTorch isn't used"),
  use_liger_kernel: only([false], "its kernels are for GPUs"),
  debug: only(["", []], "PyTorch isn't used"),
  adafactor: only([false], "the optimisers are those of --optim"),
  optim_args: only([""], "the optimisers' settings are separate options, such as --adam_beta1"),
  lr_scheduler_kwargs: only([{}, ""], "schedules have no further settings"),
  group_by_length: only([false], "images have no length"),
  auto_find_batch_size: only([false], "choose --per_device_train_batch_size"),
  neftune_noise_alpha: only([], "it is for text"),
  eval_delay: only([0], "evaluation starts with the first epoch or step"),
  prediction_loss_only: only([false], "evaluation always computes the accuracy, too"),
  batch_eval_metrics: NO_METRICS,
  include_inputs_for_metrics: NO_METRICS,
  include_for_metrics: only([[], ""], NO_METRICS.why),
  save_safetensors: only([true], "checkpoints are safetensors"),
  save_only_model: only([false], "checkpoints always contain what resuming needs"),
  ignore_data_skip: only([false], "a resumed run continues with the same images"),
  skip_memory_metrics: only([true], "memory isn't measured"),
  use_legacy_prediction_loop: only([false], "there is one loop"),
};

/** A translated option: one of this command, or a note that it is ignored. */
export type Translated = { name: string; value: unknown } | { note: string };

/**
 * Translates an option that `vit-msn train` doesn't have, or a value with another name here.
 * @returns undefined if transformers has no such option either, or it is the same here.
 * @throws VitMsnError INVALID_ARGUMENT for an unsupported value.
 */
export function translate(name: string, value: unknown): Translated | undefined {
  const values = own(SAME_VALUES, name);
  const same = values && typeof value === "string" ? own(values, value) : undefined;
  if (same !== undefined) return { name, value: same };
  const renamed = own(SAME_AS, name);
  if (renamed !== undefined) return { name: renamed, value };
  const reason = own(WITHOUT_EFFECT, name);
  if (reason !== undefined) return { note: `${name} is ignored: ${reason}.` };
  const limits = own(ONLY, name);
  if (limits === undefined) return undefined;
  const json = JSON.stringify(value);
  if (value === null || limits.allowed.some((allowed) => JSON.stringify(allowed) === json)) {
    return { note: `${name} ${json} is ignored: it has no effect.` };
  }
  throw new VitMsnError("INVALID_ARGUMENT", `${name} can't be ${json}: ${limits.why}.`, {
    details: { argument: name },
  });
}

/**
 * Translates the arguments of `vit-msn train` into its own options. Ignored ones are reported on standard error.
 * @throws CommanderError for an unsupported option, after printing the reason.
 */
export function translate_arguments(argv: readonly string[]): string[] {
  const translated: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] as string;
    const [, option = "", inline] = /^--([a-z0-9_-]+)(?:=(.*))?$/s.exec(word) ?? [];
    const found = find_name(option.replaceAll("-", "_"));
    if (found === undefined) {
      translated.push(word);
      continue;
    }
    const next = found.is_negated || inline !== undefined ? undefined : argv[i + 1];
    const takes_next = next !== undefined && belongs_to(found.name, next);
    if (takes_next) i++;
    const given = inline ?? (takes_next ? next : undefined);
    const value = given === undefined ? !found.is_negated : parse_value(given);
    const result = as_usage_error(() => translate(found.name, value));
    if (result === undefined) translated.push(word, ...(takes_next ? [next] : []));
    else if ("note" in result) process.stderr.write(`vit-msn: ${result.note}\n`);
    else
      translated.push(`--${result.name}`, result.value === value ? (given ?? "true") : String(result.value));
  }
  return translated;
}

/** The option that a word names; --no_x negates --x unless it is an option itself. */
function find_name(word: string): { name: string; is_negated: boolean } | undefined {
  const is_known = (name: string) =>
    [SAME_VALUES, SAME_AS, WITHOUT_EFFECT, ONLY].some((table) => Object.hasOwn(table, name));
  if (is_known(word)) return { name: word, is_negated: false };
  const positive = word.replace(/^no_/, "");
  return positive !== word && is_known(positive) ? { name: positive, is_negated: true } : undefined;
}

/** Whether the word after an option is its value: flags only take booleans, so that an options file may follow. */
function belongs_to(name: string, next: string): boolean {
  if (/^(true|false|none|null|yes|no|y|n|t|f|0|1)$/i.test(next)) return true;
  const { allowed = [""] } = own(ONLY, name) ?? {};
  const is_flag = allowed.some((value) => typeof value === "boolean") && !allowed.includes("");
  return !is_flag && !next.startsWith("--") && !next.endsWith(".json");
}

function parse_value(text: string): unknown {
  if (/^(true|yes|y|t)$/i.test(text)) return true;
  if (/^(false|no|n|f)$/i.test(text)) return false;
  if (/^(none|null)$/i.test(text)) return null;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

/** Reports wrong usage the way commander does. */
function as_usage_error<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof VitMsnError)) throw error;
    process.stderr.write(`error: ${error.message}\n`);
    throw new CommanderError(2, "vit-msn.option", error.message);
  }
}

function own<T>(table: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}

function by_name(groups: Readonly<Record<string, string>>): Record<string, string> {
  const entries = Object.entries(groups).flatMap(([reason, names]) =>
    names.split(" ").map((name) => [name, reason]),
  );
  return Object.fromEntries(entries) as Record<string, string>;
}
