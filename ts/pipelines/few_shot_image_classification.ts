import { save_files } from "#save";
import type { TrainingEngine } from "../engine/training_engine.ts";
import { invalid_argument as invalid, show, VitMsnError } from "../errors.ts";
import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { type ImageInput, RawImage } from "../image/raw_image.ts";
import { is_a } from "../is_a.ts";
import type { ProductEngine } from "../learning/engine_products.ts";
import { type Evaluation, leave_one_out, summarise } from "../learning/evaluation.ts";
import { export_model } from "../learning/export_model.ts";
import {
  center_and_normalize,
  check_feature,
  type Example,
  FEATURE_KINDS,
  type FeatureKind,
  labels_of,
  normalize_feature,
  parts_of,
} from "../learning/features.ts";
import { check_labels, type FitReport, fit_head } from "../learning/fit.ts";
import {
  type FitOptions,
  type FitPlan,
  type LearningProgressCallback,
  plan_fit,
} from "../learning/fit_options.ts";
import {
  read_few_shot,
  type SavedFewShot,
  SETTINGS_FILE,
  TENSORS_FILE,
  write_few_shot,
} from "../learning/head_file.ts";
import { type Head, predict } from "../learning/heads.ts";
import { low_shot } from "../learning/low_shot.ts";
import { LOAD_RULES, SAVE_RULES } from "../loading/option_rules.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { LoadOptions, PretrainedSource } from "../loading/types.ts";
import type { ViTMSNModel } from "../model/modeling_vit_msn.ts";
import { callable, check_options, count, count_or_null, flag, type Rules } from "../options.ts";
import { best, type ClassificationResult, DEFAULT_TOP_K } from "./image_classification.ts";
import { CALL_RULES, ImagePipeline, type ImagePipelineCallOptions } from "./image_pipeline.ts";

/** How features are computed; pipeline()'s options for "few-shot-image-classification". */
export interface FewShotFeatureOptions {
  /**
   * "cls_before_norm" (default): CLS of the last block before the final layernorm, as in the MSN paper's
   * evaluation; "cls": after it; "mean", "mean_before_norm": the mean of the patch tokens; "cls_mean":
   * cls_before_norm and mean_before_norm together, which is best from about ten images per label.
   */
  features?: FeatureKind;
  /** Subtract each feature's mean and scale it to length 1, as in the paper, each part of cls_mean separately; default true. */
  normalize?: boolean;
}

export interface FewShotCallOptions extends ImagePipelineCallOptions {
  /** The number of labels to return, best first; default 5, at most all. */
  top_k?: number | null;
}

/** The options of add() and evaluate(). */
export interface FewShotImageOptions extends ImagePipelineCallOptions {
  progress_callback?: LearningProgressCallback;
}

export interface FewShotSaveOptions extends Pick<LoadOptions, "signal" | "progress_callback"> {
  /** Also write the images' features, so that more images can be added after load(); default true. */
  keep_features?: boolean;
}

/** The options of low_shot(), besides those of fit(). */
export interface LowShotOptions extends FitOptions {
  /** The number of images of each label to learn from. */
  shots: number;
  /** The number of draws; default 5. */
  seeds?: number;
}

/** Images by label. */
export type LabelledImages =
  | Readonly<Record<string, ImageInput | readonly ImageInput[]>>
  | ReadonlyMap<string, ImageInput | readonly ImageInput[]>;

export interface FewShotImageClassificationPipeline {
  (images: readonly ImageInput[], options?: FewShotCallOptions): Promise<ClassificationResult[][]>;
  (image: ImageInput, options?: FewShotCallOptions): Promise<ClassificationResult[]>;
}

const FEATURE_RULES: Rules = { features: Object.keys(FEATURE_KINDS), normalize: flag };
const IMAGE_RULES: Rules = { ...CALL_RULES, progress_callback: callable };

/** The minimum similarity of the probe to the saved one (cosine of centred features), for every dtype. */
const SAME_BACKBONE = 0.99;

/**
 * pipeline("few-shot-image-classification"): learns your own labels from a few images each, on a frozen
 * backbone, as in the MSN paper's low-shot evaluation.
 *
 * The backbone runs once for each image, when it is added; fitting, and adding or removing others, only uses
 * the features.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the interface adds the call signatures of Callable's instances.
export class FewShotImageClassificationPipeline extends ImagePipeline<
  ViTMSNModel,
  [images: ImageInput | readonly ImageInput[], options?: FewShotCallOptions],
  ClassificationResult[] | ClassificationResult[][]
> {
  /** Set explicitly, since minifiers rename classes. */
  static override readonly name: string = "FewShotImageClassificationPipeline";
  readonly task = "few-shot-image-classification";
  #features: FeatureKind;
  #normalize: boolean;
  #examples: Example[] = [];
  #next_id = 0;
  #fitted: { head: Head; plan: FitPlan } | undefined;
  #stale = false;
  #disposed = false;

  constructor(model: ViTMSNModel, processor: ViTImageProcessor, options: FewShotFeatureOptions = {}) {
    super(model, processor);
    check_options("FewShotImageClassificationPipeline", options, FEATURE_RULES);
    const { features = "cls_before_norm", normalize = true } = options;
    this.#features = features;
    this.#normalize = normalize;
  }

  /** How features are computed, and whether they are centred and normalised. */
  get feature_options(): Required<FewShotFeatureOptions> {
    return { features: this.#features, normalize: this.#normalize };
  }

  /** The labels that have images, in the order in which they were added. */
  get labels(): string[] {
    return labels_of(this.#examples);
  }

  /** The images that were added: their ids and labels. */
  get examples(): { id: number; label: string }[] {
    return this.#examples.map(({ id, label }) => ({ id, label }));
  }

  /** Whether there is a head to classify with. */
  get is_fitted(): boolean {
    return this.#fitted !== undefined;
  }

  /** Whether images were added or removed since the last fit(), which the current head doesn't reflect. */
  get needs_fit(): boolean {
    return this.#fitted === undefined || this.#stale;
  }

  /**
   * Computes the features of one or several images and stores them under `label`: all of them, or none if one
   * fails.
   * @returns an id for each image, for remove().
   * @throws VitMsnError INVALID_ARGUMENT for an empty label, no images or a feature that isn't finite; what
   *   RawImage.read throws; DISPOSED; ABORTED.
   */
  async add(
    label: string,
    images: ImageInput | readonly ImageInput[],
    options: FewShotImageOptions = {},
  ): Promise<number[]> {
    this.#check_alive();
    if (typeof label !== "string" || label === "") throw invalid("A label must be a non-empty string.");
    check_options("add", options, IMAGE_RULES);
    const count = Array.isArray(images) ? images.length : 1;
    if (count === 0) throw invalid(`The list of images for ${JSON.stringify(label)} is empty.`);
    const { progress_callback, ...call } = options;
    const found: Float32Array[] = [];
    for await (const feature of this.#features_of(images, call)) {
      found.push(check_feature(feature, `image ${found.length} for ${JSON.stringify(label)}`));
      progress_callback?.({ status: "features", done: found.length, total: count });
    }
    const added = found.map((feature) => ({ id: this.#next_id++, label, feature }));
    this.#examples.push(...added);
    this.#stale = true;
    return added.map(({ id }) => id);
  }

  /**
   * Removes an image by its id, or all images of a label.
   * @returns the number of removed images.
   * @throws VitMsnError INVALID_ARGUMENT if there is none.
   */
  remove(what: number | string): number {
    this.#check_alive();
    const remaining = this.#examples.filter(({ id, label }) => id !== what && label !== what);
    const removed = this.#examples.length - remaining.length;
    if (removed === 0) {
      const known = this.labels.map((label) => JSON.stringify(label)).join(", ") || "none";
      throw invalid(`There is no image with the id or label ${show(what)}; the labels are: ${known}.`);
    }
    this.#examples = remaining;
    this.#stale = true;
    return removed;
  }

  /** The CPU engine, whose products are faster than JavaScript's. A GPU's results take long to arrive. */
  get #engine(): ProductEngine | undefined {
    return this.model.device === "wasm" ? (this.model.engine as TrainingEngine) : undefined;
  }

  /**
   * Fits a head to the added images. The previous head stays in use until the new one is done.
   * @throws VitMsnError INVALID_ARGUMENT for wrong options, fewer than two labels, or `penalty: "auto"` if
   *   a label has a single image; DISPOSED; ABORTED.
   */
  async fit(options: FitOptions = {}): Promise<FitReport> {
    this.#check_alive();
    const plan = plan_fit(options);
    const examples = [...this.#examples];
    const { head, report } = await fit_head(examples, plan, { ...options, engine: this.#engine });
    this.#check_alive();
    const chosen = plan.method === "logistic_regression" ? { ...plan, penalty: report.penalty } : plan;
    this.#fitted = { head, plan: chosen };
    this.#stale =
      examples.length !== this.#examples.length || examples.some((e, i) => e !== this.#examples[i]);
    return report;
  }

  /** Classifies images with the head that was fitted or loaded last. Scores over all labels add up to 1. */
  override async _call(
    images: ImageInput | readonly ImageInput[],
    options: FewShotCallOptions = {},
  ): Promise<ClassificationResult[] | ClassificationResult[][]> {
    const { head } = this.#ready();
    check_options("The few-shot-image-classification call", options, { ...CALL_RULES, top_k: count_or_null });
    const { top_k, ...call } = options;
    const k = top_k ?? DEFAULT_TOP_K;
    const results: ClassificationResult[][] = [];
    for await (const feature of this.#features_of(images, call)) {
      const checked = check_feature(feature, `image ${results.length}`);
      results.push(best(head.scores(checked), k, head.labels));
    }
    return Array.isArray(images) ? results : (results[0] as ClassificationResult[]);
  }

  /**
   * Measures how often images that weren't added are classified correctly.
   * @param images images by label; the head must know each label.
   */
  async evaluate(images: LabelledImages, options: FewShotImageOptions = {}): Promise<Evaluation> {
    const { head } = this.#ready();
    check_options("evaluate", options, IMAGE_RULES);
    const entries = is_a(images, "Map") ? [...images] : Object.entries(images ?? {});
    const lists = entries.map(
      ([label, given]) =>
        [label as string, (Array.isArray(given) ? given : [given]) as ImageInput[]] as const,
    );
    const unknown = lists.find(([label]) => !head.labels.includes(label));
    if (unknown !== undefined)
      throw invalid(
        `The head doesn't know the label ${JSON.stringify(unknown[0])}; its labels are: ${head.labels.join(", ")}.`,
      );
    const total = lists.reduce((sum, [, list]) => sum + list.length, 0);
    if (total === 0) throw invalid("evaluate() needs at least one image.");
    const { progress_callback, ...call } = options;
    const pairs: { label: string; predicted: string }[] = [];
    for (const [label, list] of lists) {
      for await (const feature of this.#features_of(list, call)) {
        const checked = check_feature(feature, `an image of ${JSON.stringify(label)}`);
        pairs.push({ label, predicted: predict(head, checked) });
        progress_callback?.({ status: "features", done: pairs.length, total });
      }
    }
    return summarise(head.labels, pairs);
  }

  /**
   * Measures how often each added image is classified correctly by a head fitted to all others, with the last
   * fit's method and penalty. It runs a fit for each image, but no forward. A label's only image is always
   * wrong.
   */
  async leave_one_out(options: Pick<FitOptions, "signal" | "progress_callback"> = {}): Promise<Evaluation> {
    const { plan } = this.#ready();
    check_options("leave_one_out", options, SAVE_RULES);
    check_labels(this.labels);
    return leave_one_out([...this.#examples], plan, { ...options, engine: this.#engine });
  }

  /**
   * Measures how well a few images of each label suffice: for each seed, draws `shots` added images of each label, fits a
   * head to them and classifies all other added images. It runs no forward pass and doesn't change the fitted head.
   * @param options `shots`: images of each label; `seeds`: the number of draws, default 5; others as for fit().
   * @returns an evaluation for each draw; the same seeds draw the same images.
   * @throws VitMsnError INVALID_ARGUMENT unless every label has more than `shots` images; what fit() throws.
   */
  async low_shot({ shots, seeds = 5, ...options }: LowShotOptions): Promise<Evaluation[]> {
    this.#check_alive();
    check_options("low_shot", { shots, seeds }, { shots: count, seeds: count });
    const run = { ...options, engine: this.#engine };
    return low_shot([...this.#examples], shots, seeds, plan_fit(options), run);
  }

  /**
   * Writes few_shot.json and few_shot.safetensors, for load(): settings, labels, the head if there is one,
   * and the images' features, but not the images.
   * @param directory a folder's path; in browsers a FileSystemDirectoryHandle.
   */
  async save(directory: SaveDirectory, options: FewShotSaveOptions = {}): Promise<void> {
    this.#check_alive();
    check_options("save", options, { ...SAVE_RULES, keep_features: flag });
    const { keep_features = true, ...save_options } = options;
    if (this.#fitted === undefined && (!keep_features || this.#examples.length === 0))
      throw invalid("There is nothing to save yet; add images, or call fit() first.");
    const { settings, tensors } = write_few_shot({
      ...this.feature_options,
      probe: await this.#probe(save_options.signal),
      fitted: this.#fitted,
      needs_fit: this.needs_fit,
      examples: keep_features ? this.#examples : undefined,
    });
    await save_files(directory, { [SETTINGS_FILE]: settings, [TENSORS_FILE]: tensors }, save_options);
  }

  /**
   * Loads what save() wrote and replaces the current images and head; the file's `features` and `normalize`
   * override those of pipeline(). The backbone must be the same, which the feature of a fixed image verifies;
   * its dtype may differ.
   * @throws VitMsnError NOT_FOUND; INVALID_CHECKPOINT and INVALID_CONFIG for damaged files;
   *   CHECKPOINT_MISMATCH for another backbone.
   */
  async load(source: PretrainedSource, options: LoadOptions = {}): Promise<void> {
    this.#check_alive();
    check_options("load", options, SAVE_RULES, LOAD_RULES);
    const saved = await read_few_shot(await open_source(source, options));
    await this.#check_backbone(saved, options.signal);
    this.#check_alive();
    this.#features = saved.features;
    this.#normalize = saved.normalize;
    this.#fitted = saved.fitted;
    this.#examples = [...(saved.examples ?? [])];
    this.#next_id = this.#examples.reduce((next, { id }) => Math.max(next, id + 1), 0);
    this.#stale = saved.needs_fit;
  }

  async #check_backbone(
    { probe, features, normalize }: SavedFewShot,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const size = parts_of(features) * this.model.config.hidden_size;
    const feature = probe.length === size ? await this.#probe(signal, features, normalize) : undefined;
    if (feature !== undefined && cosine(feature, probe) >= SAME_BACKBONE) return;
    throw new VitMsnError(
      "CHECKPOINT_MISMATCH",
      "This head was fitted on another backbone or with another image processor: " +
        (feature
          ? "the feature of a fixed image differs."
          : `its features have ${probe.length} values, this model's have ${size}.`),
    );
  }

  /**
   * Writes a complete ViTMSNForImageClassification (config.json, model.safetensors,
   * preprocessor_config.json), which from_pretrained and Hugging Face transformers load and which classifies
   * like this pipeline.
   *
   * It is exact for the default features, and for `features: "cls", normalize: false`, with logistic
   * regression and nearest centroid.
   * @throws VitMsnError UNSUPPORTED for other features and for k-NN, which have no equivalent classifier on
   *   the CLS token.
   */
  async export_model(
    directory: SaveDirectory,
    options: Pick<LoadOptions, "signal" | "progress_callback"> = {},
  ): Promise<void> {
    const { head } = this.#ready();
    check_options("export_model", options, SAVE_RULES);
    await export_model(directory, this.model, this.processor, { head, ...this.feature_options }, options);
  }

  /** Frees the model's memory, the images' features and the head. */
  override async dispose(): Promise<void> {
    this.#disposed = true;
    this.#examples = [];
    this.#fitted = undefined;
    await super.dispose();
  }

  async *#features_of(
    images: ImageInput | readonly ImageInput[],
    options: ImagePipelineCallOptions,
    kind: FeatureKind = this.#features,
    normalize: boolean = this.#normalize,
  ): AsyncGenerator<Float32Array> {
    const { pool, before_norm } = FEATURE_KINDS[kind];
    for await (const inputs of this.batches(images, options)) {
      const { data, dims } = await this.model.get_image_features(inputs, pool, { before_norm });
      const [batch, size] = dims as [number, number];
      for (let i = 0; i < batch; i++) {
        const feature = data.slice(i * size, (i + 1) * size);
        yield normalize ? normalize_feature(feature, kind) : feature;
      }
    }
  }

  /**
   * The feature of a fixed image, a gradient in each channel: it depends on the weights and on the processor.
   */
  async #probe(
    signal: AbortSignal | undefined,
    kind: FeatureKind = this.#features,
    normalize: boolean = this.#normalize,
  ): Promise<Float32Array> {
    const side = 64;
    const pixels = new Uint8Array(side * side * 3);
    for (let i = 0; i < side * side; i++) {
      const [x, y] = [i % side, Math.floor(i / side)];
      pixels.set([4 * x, 4 * y, (x * y) & 0xff], 3 * i);
    }
    const features = this.#features_of(new RawImage(pixels, side, side, 3), { signal }, kind, normalize);
    for await (const feature of features) return check_feature(feature, "a test image");
    throw invalid("The backbone returned no feature.");
  }

  #ready(): { head: Head; plan: FitPlan } {
    this.#check_alive();
    if (this.#fitted) return this.#fitted;
    throw invalid("There is no head yet; add images of at least two labels and call fit(), or load() one.");
  }

  #check_alive(): void {
    if (this.#disposed)
      throw new VitMsnError("DISPOSED", "This pipeline was disposed; create another with pipeline().");
  }
}

/** The cosine of two features with their means subtracted. */
function cosine(a: Float32Array, b: Float32Array): number {
  const [u, v] = [center_and_normalize(a), center_and_normalize(b)];
  return u.reduce((sum, value, i) => sum + value * (v[i] as number), 0);
}
