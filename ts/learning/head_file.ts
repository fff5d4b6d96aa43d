import { numel } from "../dims.ts";
import { VitMsnError } from "../errors.ts";
import { is_count } from "../is_count.ts";
import { type FileTensors, read_safetensors } from "../loading/checkpoint.ts";
import {
  float32_tensor,
  type TensorToWrite,
  write_safetensors,
} from "../loading/formats/write_safetensors.ts";
import { read_json } from "../loading/json.ts";
import type { CheckpointTensor, ModelSource } from "../loading/types.ts";
import { type Example, FEATURE_KINDS, type FeatureKind, labels_of } from "./features.ts";
import { FEW_SHOT_METHODS, type FewShotMethod, type FitPlan, plan_fit } from "./fit_options.ts";
import { type Head, LinearHead, NeighborHead } from "./heads.ts";

/** A saved few-shot head is two files: settings and labels as JSON, tensors as safetensors. */
export const SETTINGS_FILE = "few_shot.json";
export const TENSORS_FILE = "few_shot.safetensors";
const FORMAT = "vit-msn-few-shot";
const VERSION = 1;

/** The contents of a saved few-shot head. */
export interface SavedFewShot {
  features: FeatureKind;
  normalize: boolean;
  /** The backbone's feature of a fixed image, which identifies the backbone. */
  probe: Float32Array;
  fitted: { head: Head; plan: FitPlan } | undefined;
  /** Whether images were added or removed since the head was fitted. */
  needs_fit: boolean;
  /** undefined if features weren't saved. */
  examples: readonly Example[] | undefined;
}

/** The contents of the two files. */
export function write_few_shot(content: SavedFewShot): {
  settings: string;
  tensors: AsyncIterable<Uint8Array>;
} {
  const { features, normalize, probe, fitted, needs_fit, examples } = content;
  const tensors = [float32_tensor("probe", [probe.length], probe)];
  if (fitted) tensors.push(...head_tensors(fitted.head));
  if (examples !== undefined && examples.length > 0) {
    const values = new Float32Array(examples.length * probe.length);
    for (const [i, { feature }] of examples.entries()) values.set(feature, i * probe.length);
    tensors.push(float32_tensor("examples.features", [examples.length, probe.length], values));
  }
  const settings = {
    format: FORMAT,
    version: VERSION,
    features,
    normalize,
    hidden_size: probe.length,
    needs_fit,
    head: fitted ? describe_head(fitted.head, fitted.plan) : null,
    examples: examples ? describe_examples(examples) : null,
  };
  return { settings: `${JSON.stringify(settings, null, 2)}\n`, tensors: write_safetensors(tensors) };
}

function head_tensors(head: Head): TensorToWrite[] {
  const rows = head instanceof LinearHead ? head.labels.length : head.classes.length;
  if (head instanceof NeighborHead)
    return [float32_tensor("head.features", [rows, head.size], head.features)];
  return [
    float32_tensor("head.weight", [rows, head.size], head.weight),
    float32_tensor("head.bias", [rows], head.bias),
  ];
}

function describe_head(head: Head, { method, ...options }: FitPlan) {
  const described = { method, labels: head.labels, options };
  return head instanceof NeighborHead ? { ...described, classes: [...head.classes] } : described;
}

function describe_examples(examples: readonly Example[]) {
  const labels = labels_of(examples);
  const index = new Map(labels.map((label, i) => [label, i]));
  return {
    labels,
    ids: examples.map(({ id }) => id),
    classes: examples.map(({ label }) => index.get(label)),
  };
}

/**
 * Reads what write_few_shot wrote. Both files are untrusted: each field and tensor is checked against the
 * others.
 * @throws VitMsnError NOT_FOUND if a file is missing, INVALID_CONFIG for invalid JSON, INVALID_CHECKPOINT
 *   for any other fault.
 */
export async function read_few_shot(source: ModelSource): Promise<SavedFewShot> {
  const settings = await read_json(source, SETTINGS_FILE);
  const file = settings && (await source.open(TENSORS_FILE));
  if (!file) {
    throw new VitMsnError(
      "NOT_FOUND",
      `${source.name} lacks ${settings ? TENSORS_FILE : SETTINGS_FILE}; pass a folder that save() wrote.`,
      { details: { source: source.name } },
    );
  }
  try {
    const reader = new FewShotReader(source.name, await read_safetensors(file));
    return await reader.read(settings);
  } finally {
    await file.close();
  }
}

class FewShotReader {
  readonly #name: string;
  readonly #tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly #unreadable: ReadonlyMap<string, string>;

  constructor(name: string, { tensors, unreadable }: FileTensors) {
    this.#name = name;
    this.#tensors = new Map(tensors.map((tensor) => [tensor.key, tensor]));
    this.#unreadable = unreadable;
  }

  async read(settings: Record<string, unknown>): Promise<SavedFewShot> {
    const { format, version, features, normalize, hidden_size, needs_fit } = settings;
    if (format !== FORMAT) this.#fail(`"format" must be "${FORMAT}"`);
    if (version !== VERSION) this.#fail(`"version" must be ${VERSION}; a newer vit-msn may have written it`);
    if (typeof features !== "string" || !Object.hasOwn(FEATURE_KINDS, features))
      this.#fail(`"features" must be one of ${Object.keys(FEATURE_KINDS).join(", ")}`);
    if (typeof normalize !== "boolean") this.#fail('"normalize" must be true or false');
    if (typeof needs_fit !== "boolean") this.#fail('"needs_fit" must be true or false');
    if (!is_count(hidden_size) || hidden_size < 1) this.#fail('"hidden_size" must be a positive integer');
    const size = hidden_size as number;
    return {
      features: features as FeatureKind,
      normalize: normalize as boolean,
      needs_fit: needs_fit as boolean,
      probe: await this.#floats("probe", [size]),
      fitted: settings.head == null ? undefined : await this.#head(settings.head, size),
      examples: settings.examples == null ? undefined : await this.#examples(settings.examples, size),
    };
  }

  async #head(described: unknown, size: number): Promise<NonNullable<SavedFewShot["fitted"]>> {
    const { method, labels, options, classes } = this.#object(described, "head");
    if (!FEW_SHOT_METHODS.includes(method as FewShotMethod))
      this.#fail(`"head.method" must be one of ${FEW_SHOT_METHODS.join(", ")}`);
    const plan = this.#plan(method as FewShotMethod, this.#object(options, "head.options"));
    const names = this.#labels(labels, "head.labels", 2);
    if (plan.method !== "knn") {
      const weight = await this.#floats("head.weight", [names.length, size]);
      const bias = await this.#floats("head.bias", [names.length]);
      return { head: new LinearHead(names, weight, bias), plan };
    }
    const indices = this.#indices(classes, "head.classes", names.length);
    const features = await this.#floats("head.features", [indices.length, size]);
    return { head: new NeighborHead(names, features, indices, plan), plan };
  }

  #plan(method: FewShotMethod, options: Record<string, unknown>): FitPlan {
    try {
      return plan_fit({ ...options, method });
    } catch (error) {
      return this.#fail(`"head.options" is wrong: ${(error as Error).message}`);
    }
  }

  async #examples(described: unknown, size: number): Promise<Example[]> {
    const { labels, ids, classes } = this.#object(described, "examples");
    if (Array.isArray(ids) && ids.length === 0) return [];
    const names = this.#labels(labels, "examples.labels", 1);
    const indices = this.#indices(classes, "examples.classes", names.length);
    const is_valid = Array.isArray(ids) && ids.every(is_count) && new Set(ids).size === indices.length;
    if (!is_valid || ids.length !== indices.length)
      this.#fail(`"examples.ids" must be ${indices.length} different integers, one per image`);
    const values = await this.#floats("examples.features", [indices.length, size]);
    return Array.from(indices, (c, i) => ({
      id: (ids as number[])[i] as number,
      label: names[c] as string,
      feature: values.slice(i * size, (i + 1) * size),
    }));
  }

  #object(value: unknown, field: string): Record<string, unknown> {
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      return value as Record<string, unknown>;
    return this.#fail(`"${field}" must be an object`);
  }

  #labels(value: unknown, field: string, min: number): string[] {
    const is_valid =
      Array.isArray(value) &&
      value.length >= min &&
      value.every((label) => typeof label === "string" && label !== "") &&
      new Set(value).size === value.length;
    if (!is_valid) this.#fail(`"${field}" must be ${min} or more different names`);
    return value as string[];
  }

  /** Indices of labels, at least one of each. */
  #indices(value: unknown, field: string, labels: number): Int32Array {
    const is_valid = Array.isArray(value) && value.every((c) => is_count(c) && c < labels);
    if (!is_valid || new Set(value).size !== labels)
      this.#fail(`"${field}" must be indices from 0 to ${labels - 1}, each at least once`);
    return Int32Array.from(value as number[]);
  }

  /** A tensor of exactly this shape, with finite values. */
  async #floats(key: string, dims: readonly number[]): Promise<Float32Array> {
    const found = this.#tensors.get(key);
    const dtype = this.#unreadable.get(key);
    if (dtype !== undefined) this.#fail(`the tensor "${key}" must be float32, but it is ${dtype}`);
    if (found === undefined) return this.#fail(`the tensor "${key}" is missing from ${TENSORS_FILE}`);
    if (found.dtype !== "float32" || found.dims.join() !== dims.join()) {
      const is = `${found.dtype} [${found.dims.join(", ")}]`;
      this.#fail(`the tensor "${key}" must be float32 [${dims.join(", ")}], but it is ${is}`);
    }
    const count = numel(dims);
    const bytes = await found.read(0, 4 * count);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const values = Float32Array.from({ length: count }, (_, i) => view.getFloat32(4 * i, true));
    if (!values.every(Number.isFinite)) this.#fail(`the tensor "${key}" holds NaN or infinity`);
    return values;
  }

  #fail(what: string): never {
    throw new VitMsnError("INVALID_CHECKPOINT", `${this.#name} is not a valid few-shot head: ${what}.`, {
      details: { source: this.#name },
    });
  }
}
