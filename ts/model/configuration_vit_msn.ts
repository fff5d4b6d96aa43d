import { ACTIVATIONS, type Activation, type Grid } from "../engine/engine.ts";
import { env } from "../env.ts";
import { invalid_argument, show, VitMsnError } from "../errors.ts";
import { read_json, to_json_text } from "../loading/json.ts";
import { check_pretrained } from "../loading/option_rules.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { LoadOptions, ModelSource, PretrainedSource } from "../loading/types.ts";
import { on_demand } from "../on_demand.ts";
import { is_record, unknown_option } from "../options.ts";
import { preset_fields, VIT_MSN_PRESETS, type ViTMSNPreset } from "./presets.ts";

export type ProblemType = "regression" | "single_label_classification" | "multi_label_classification";
export type AttnImplementation = "sdpa" | "eager";

/** transformers' aliases of activations, with the engine's activation for each. */
const ACTIVATION_ALIASES = {
  linear: "identity",
  swish: "silu",
  gelu_python: "gelu",
  gelu_fast: "gelu_new",
  gelu_accurate: "gelu_new",
  gelu_python_tanh: "gelu_new",
} as const satisfies Record<string, Activation>;
/** The values of hidden_act. */
export type HiddenAct = Exclude<Activation, "identity"> | keyof typeof ACTIVATION_ALIASES;

const HIDDEN_ACTS: readonly string[] = [
  ...ACTIVATIONS.filter((name) => name !== "identity"),
  ...Object.keys(ACTIVATION_ALIASES),
];

function is_alias(name: HiddenAct): name is keyof typeof ACTIVATION_ALIASES {
  return Object.hasOwn(ACTIVATION_ALIASES, name);
}

/** The fields of a ViT-MSN config.json. Unknown fields are preserved and written back. */
export interface ViTMSNConfigFields {
  /** Width of the hidden states; default 768. */
  hidden_size: number;
  /** Default 12. */
  num_hidden_layers: number;
  /** Must divide hidden_size; default 12. */
  num_attention_heads: number;
  /** Width of the MLP's hidden layer; default 3072. */
  intermediate_size: number;
  /** Activation of the MLP; default "gelu", with the exact erf. */
  hidden_act: HiddenAct;
  /** Dropout of embeddings and hidden states in training; default 0. */
  hidden_dropout_prob: number;
  /** Dropout of attention probabilities in training; default 0. */
  attention_probs_dropout_prob: number;
  /** Standard deviation of newly initialised weights; default 0.02. */
  initializer_range: number;
  /** Default 1e-6. */
  layer_norm_eps: number;
  /** Pixels: one side of a square, or [height, width]; default 224. */
  image_size: number | readonly [number, number];
  /** Pixels: one side of a square, or [height, width]; default 16. */
  patch_size: number | readonly [number, number];
  /** Default 3. */
  num_channels: number;
  /** Whether query, key and value have biases; default true. */
  qkv_bias: boolean;
  /** Number of classes; default the size of id2label, else 2. 0 means a backbone without a classifier. */
  num_labels: number;
  /** Class names by index; default LABEL_0, LABEL_1, … */
  id2label: Record<number, string>;
  label2id: Record<string, number>;
  /** The loss for labels; if unset, it is chosen from num_labels and the labels' type, as in the reference. */
  problem_type: ProblemType | null;
  /** Whether forward returns attentions unless the call overrides it; default false. */
  output_attentions: boolean;
  /** Whether forward returns hidden states unless the call overrides it; default false. */
  output_hidden_states: boolean;
}

/** The constructor's fields, all optional. With model_type they are a config.json, whose other fields are preserved. */
export type ViTMSNConfigInit = Partial<ViTMSNConfigFields> & { model_type?: string };

// No ViT that fits into a 4 GiB engine exceeds these sizes, which bound allocations and loops for a hostile config.
const MAX_SIZE = 1 << 16;
const MAX_LAYERS = 1024;
const MAX_LABELS = 1 << 17;

export const CONFIG_FILE = "config.json";

const PROBLEM_TYPES: readonly string[] = [
  "regression",
  "single_label_classification",
  "multi_label_classification",
];

/**
 * The configuration of a ViT-MSN model: config.json's own fields with the reference's defaults
 * (transformers' configuration_vit_msn.py).
 *
 * @throws VitMsnError INVALID_CONFIG, naming the first invalid field.
 */
export class ViTMSNConfig implements ViTMSNConfigFields {
  /** A literal, since minifiers rename classes. */
  static readonly name: string = "ViTMSNConfig";
  readonly model_type = "vit_msn";
  hidden_size = 768;
  num_hidden_layers = 12;
  num_attention_heads = 12;
  intermediate_size = 3072;
  hidden_act: HiddenAct = "gelu";
  hidden_dropout_prob = 0;
  attention_probs_dropout_prob = 0;
  initializer_range = 0.02;
  layer_norm_eps = 1e-6;
  image_size: number | readonly [number, number] = 224;
  patch_size: number | readonly [number, number] = 16;
  num_channels = 3;
  qkv_bias = true;
  id2label: Record<number, string>;
  label2id: Record<string, number>;
  problem_type: ProblemType | null = null;
  output_attentions = false;
  output_hidden_states = false;
  /** Fields of config.json that this class doesn't know, unchanged. */
  readonly extra: Readonly<Record<string, unknown>>;

  /**
   * @param init fields that differ from the defaults. An unknown field is an error, unless `init` has a model_type, as
   *   a whole config.json does.
   * @param source the file's name, for messages; unknown fields of a file are preserved, too.
   */
  constructor(init: ViTMSNConfigInit = {}, source?: string) {
    const check = new FieldChecker(init, source ?? "ViTMSNConfig");
    if (source === undefined) check_fields(init, this);
    if (init.model_type !== undefined && init.model_type !== "vit_msn") {
      check.fail("model_type", '"vit_msn"', "This package runs ViT-MSN models only.");
    }
    this.hidden_size = check.integer("hidden_size", this.hidden_size, 1, MAX_SIZE);
    this.num_hidden_layers = check.integer("num_hidden_layers", this.num_hidden_layers, 0, MAX_LAYERS);
    this.num_attention_heads = check.integer("num_attention_heads", this.num_attention_heads, 1, MAX_SIZE);
    this.intermediate_size = check.integer("intermediate_size", this.intermediate_size, 1, 4 * MAX_SIZE);
    this.hidden_act = check.one_of("hidden_act", this.hidden_act, HIDDEN_ACTS);
    this.hidden_dropout_prob = check.number("hidden_dropout_prob", this.hidden_dropout_prob, 0, 1);
    this.attention_probs_dropout_prob = check.number(
      "attention_probs_dropout_prob",
      this.attention_probs_dropout_prob,
      0,
      1,
    );
    this.initializer_range = check.number("initializer_range", this.initializer_range, 0, 1e6);
    this.layer_norm_eps = check.number("layer_norm_eps", this.layer_norm_eps, 0, 1);
    this.image_size = check.size("image_size", this.image_size);
    this.patch_size = check.size("patch_size", this.patch_size);
    this.num_channels = check.integer("num_channels", this.num_channels, 1, 1024);
    this.qkv_bias = check.boolean("qkv_bias", this.qkv_bias);
    this.output_attentions = check.boolean("output_attentions", this.output_attentions);
    this.output_hidden_states = check.boolean("output_hidden_states", this.output_hidden_states);
    // Some tools write "" or false if it is unset.
    this.problem_type = init.problem_type ? check.one_of("problem_type", "regression", PROBLEM_TYPES) : null;
    this.id2label = check.labels();
    this.label2id = check.label_ids(this.id2label);
    this.extra = Object.freeze(unknown_fields(init, this));
    this.#check_together(check);
  }

  /**
   * The architecture of a released model, for `from_config` and for pre-training from scratch: no weights, and nothing
   * is fetched. docs/guides/dtypes.md lists the memory and time of each.
   * @param name "vit-msn-small", "vit-msn-base", "vit-msn-large", "vit-msn-base-4" (patches of 4 pixels, 3,137 tokens)
   *   or "vit-msn-large-7" (patches of 7, 1,025 tokens); or the hub's id, with "facebook/" before it.
   * @param overrides fields to change, such as `{ num_labels: 10 }` or `{ image_size: 96 }`.
   * @throws VitMsnError INVALID_ARGUMENT for another name, listing these; INVALID_CONFIG for an invalid override.
   */
  static preset(
    name: ViTMSNPreset | `facebook/${ViTMSNPreset}`,
    overrides: ViTMSNConfigInit = {},
  ): ViTMSNConfig {
    const fields = preset_fields(name);
    if (fields === undefined) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `There is no preset ${show(name)}: use one of ${VIT_MSN_PRESETS.join(", ")}.`,
      );
    }
    check_overrides(overrides);
    return new ViTMSNConfig({ ...fields, ...overrides }, `ViTMSNConfig.preset("${name}")`);
  }

  /**
   * Reads config.json from a local folder, a hub repo id, a base URL or a map of files.
   * @throws VitMsnError INVALID_CONFIG, NOT_FOUND, NETWORK, OFFLINE, ACCESS_DENIED or ABORTED.
   */
  static async from_pretrained(source: PretrainedSource, options: LoadOptions = {}): Promise<ViTMSNConfig> {
    check_pretrained(options);
    return read_config(await open_source(source, options));
  }

  /** Writes config.json into a folder; in browsers a FileSystemDirectoryHandle. */
  async save_pretrained(directory: SaveDirectory): Promise<void> {
    const { save_files } = await on_demand("writing of files", () => import("#save"));
    await save_files(directory, { [CONFIG_FILE]: this.to_json_string() });
  }

  /** config.json's text. */
  to_json_string(): string {
    return to_json_text(this);
  }

  /** Number of classes: the size of id2label. */
  get num_labels(): number {
    return Object.keys(this.id2label).length;
  }

  /** The engine's activation for hidden_act. */
  get activation(): Activation {
    return is_alias(this.hidden_act) ? ACTIVATION_ALIASES[this.hidden_act] : this.hidden_act;
  }

  /** Image size in pixels. */
  get image_grid(): Grid {
    return to_grid(this.image_size);
  }

  /** Patch size in pixels. */
  get patch_grid(): Grid {
    return to_grid(this.patch_size);
  }

  /** The grid of patches in an image of image_size. */
  get patches(): Grid {
    const { image_grid: image, patch_grid: patch } = this;
    return { height: Math.floor(image.height / patch.height), width: Math.floor(image.width / patch.width) };
  }

  /** config.json's content: all fields, known and unknown, but not num_labels, which id2label implies (as there). */
  to_dict(): Record<string, unknown> {
    const { extra, ...fields } = this;
    return { ...extra, ...fields };
  }

  toJSON(): Record<string, unknown> {
    return this.to_dict();
  }

  #check_together(check: FieldChecker): void {
    if (this.hidden_size % this.num_attention_heads !== 0) {
      check.fail("num_attention_heads", `a divisor of hidden_size (${this.hidden_size})`);
    }
    const { image_grid: image, patch_grid: patch } = this;
    if (patch.height > image.height || patch.width > image.width) {
      check.fail("patch_size", `at most image_size (${image.height}×${image.width})`);
    }
    if (this.problem_type === "single_label_classification" && this.num_labels === 1) {
      check.fail("problem_type", '"regression" or "multi_label_classification", since num_labels is 1');
    }
  }
}

/** The config of an opened source, with some of its fields replaced. */
export async function read_config(
  files: ModelSource,
  overrides: ViTMSNConfigInit = {},
): Promise<ViTMSNConfig> {
  check_overrides(overrides);
  let fields = await read_json(files, CONFIG_FILE);
  if (fields === undefined) {
    const { no_config } = await on_demand(
      "check of a model's files",
      () => import("../loading/missing_files.ts"),
    );
    throw await no_config(files);
  }
  const { id2label, label2id } = fields;
  if (!are_names(id2label ?? {}) || !Object.values(label2id ?? {}).every(is_id)) {
    const { read_python_labels } = await on_demand("reader of labels", () => import("./python_labels.ts"));
    fields = await read_python_labels(files, CONFIG_FILE);
  }
  return new ViTMSNConfig(merge_config(fields, overrides), `${files.name}: ${CONFIG_FILE}`);
}

/** Overrides take precedence. New class names or another number of classes replace all of the file's labels. */
function merge_config(fields: ViTMSNConfigInit, overrides: ViTMSNConfigInit): ViTMSNConfigInit {
  if (overrides.num_labels === undefined && overrides.id2label === undefined)
    return { ...fields, ...overrides };
  const { id2label, label2id, num_labels, ...rest } = fields;
  const count = id2label && typeof id2label === "object" ? Object.keys(id2label).length : (num_labels ?? 2);
  if (overrides.id2label === undefined && overrides.num_labels === count) return { ...fields, ...overrides };
  return { ...rest, ...overrides };
}

function to_grid(size: number | readonly [number, number]): Grid {
  return typeof size === "number" ? { height: size, width: size } : { height: size[0], width: size[1] };
}

function unknown_fields(init: ViTMSNConfigInit, known: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(init).filter(([key]) => !Object.hasOwn(known, key) && key !== "num_labels"),
  );
}

/** Refuses unknown fields in an object written by hand, which has no model_type. */
function check_fields(init: ViTMSNConfigInit, known: ViTMSNConfig): void {
  const [unknown] = init.model_type === undefined ? Object.keys(unknown_fields(init, known)) : [];
  if (unknown !== undefined)
    throw unknown_option("The config", unknown, [...Object.keys(known), "num_labels"]);
}

function check_overrides(overrides: ViTMSNConfigInit): void {
  if (!is_record(overrides))
    throw invalid_argument(`config must be an object of fields, got ${show(overrides)}.`);
  check_fields(overrides, new ViTMSNConfig());
}

/**
 * Reads fields of an untrusted object; every failure names the file, the field, what was expected and what was found.
 */
class FieldChecker {
  readonly #init: ViTMSNConfigInit;
  readonly #source: string;

  constructor(init: ViTMSNConfigInit, source: string) {
    this.#source = source;
    if (init === null || typeof init !== "object" || Array.isArray(init)) {
      throw new VitMsnError("INVALID_CONFIG", `${source} must be an object of fields.`);
    }
    this.#init = init;
  }

  fail(field: string, expected: string, hint = ""): never {
    const value = (this.#init as Record<string, unknown>)[field];
    const found = value === undefined ? "nothing" : show(value);
    throw new VitMsnError(
      "INVALID_CONFIG",
      `${this.#source}: "${field}" must be ${expected}, found ${found}.${hint && ` ${hint}`}`,
      { details: { file: this.#source, field } },
    );
  }

  number(field: keyof ViTMSNConfigFields, fallback: number, min: number, max: number): number {
    const value: unknown = this.#init[field] ?? fallback;
    if (typeof value !== "number" || !(value >= min && value <= max)) {
      this.fail(field, `a number from ${min} to ${max}`);
    }
    return value;
  }

  integer(field: keyof ViTMSNConfigFields, fallback: number, min: number, max: number): number {
    const value: unknown = this.#init[field] ?? fallback;
    if (!is_integer(value, min, max)) this.fail(field, `a whole number from ${min} to ${max}`);
    return value;
  }

  boolean(field: keyof ViTMSNConfigFields, fallback: boolean): boolean {
    const value: unknown = this.#init[field] ?? fallback;
    if (typeof value !== "boolean" && value !== 0 && value !== 1) this.fail(field, "true or false");
    return Boolean(value);
  }

  one_of<T extends string>(field: keyof ViTMSNConfigFields, fallback: T, names: readonly string[]): T {
    const value: unknown = this.#init[field] ?? fallback;
    if (typeof value !== "string" || !names.includes(value)) this.fail(field, `one of ${names.join(", ")}`);
    return value as T;
  }

  size(field: "image_size" | "patch_size", fallback: number | readonly [number, number]) {
    const value: unknown = this.#init[field] ?? fallback;
    if (is_integer(value, 1, MAX_SIZE)) return value;
    if (Array.isArray(value) && value.length === 2 && value.every((v) => is_integer(v, 1, MAX_SIZE))) {
      return [value[0], value[1]] as [number, number];
    }
    return this.fail(field, `a whole number from 1 to ${MAX_SIZE}, or [height, width] of such`);
  }

  /** id2label, or LABEL_i for num_labels (default 2), as the reference derives one from the other. */
  labels(): Record<number, string> {
    const { id2label, num_labels } = this.#init;
    const count = num_labels == null ? undefined : this.integer("num_labels", 2, 0, MAX_LABELS);
    if (id2label == null) {
      return Object.fromEntries(Array.from({ length: count ?? 2 }, (_, i) => [i, `LABEL_${i}`]));
    }
    if (!are_names(id2label)) this.fail("id2label", "an object from the indices 0, 1, … to class names");
    const entries = Object.entries(id2label);
    if (count !== undefined && count !== entries.length) {
      this.fail("num_labels", `the number of classes in id2label (${entries.length})`);
    }
    return Object.fromEntries(entries);
  }

  /** The index of each class name. label2id may add names; if it contradicts id2label, id2label is used. */
  label_ids(id2label: Readonly<Record<number, string>>): Record<string, number> {
    const ids = new Map(Object.entries(id2label).map(([id, label]) => [label, Number(id)]));
    const wrong: string[] = [];
    for (const [label, value] of Object.entries((this.#init.label2id as object | null) ?? {})) {
      const id = is_id(value) ? Number(value) : -1;
      if (id2label[id] === label || (id2label[id] !== undefined && !ids.has(label))) ids.set(label, id);
      else wrong.push(label);
    }
    if (wrong.length > 0) {
      env.warn(
        `${this.#source}: "label2id" contradicts "id2label" for ${wrong.slice(0, 5).join(", ").slice(0, 200)}; using id2label.`,
      );
    }
    return Object.fromEntries(ids);
  }
}

/** Whether these are class names with the keys 0, 1, … */
function are_names(labels: unknown): labels is Record<string, string> {
  if (typeof labels !== "object" || labels === null) return false;
  return Object.entries(labels).every(([id, label], i) => id === `${i}` && typeof label === "string");
}

/** A class's index; transformers' own scripts write it as a string. */
function is_id(value: unknown): boolean {
  return typeof value === "string" ? /^\d+$/.test(value) : is_integer(value, 0, MAX_LABELS);
}

function is_integer(value: unknown, min: number, max: number): value is number {
  return Number.isInteger(value) && (value as number) >= min && (value as number) <= max;
}
