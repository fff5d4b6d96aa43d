import { save_files } from "#save";
import { invalid_argument as invalid, show, VitMsnError } from "../errors.ts";
import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { type ImageInput, RawImage } from "../image/raw_image.ts";
import { type Evaluation, leave_one_out, predict, summarise } from "../learning/evaluation.ts";
import { export_model } from "../learning/export_model.ts";
import {
  center_and_normalize,
  check_feature,
  type Example,
  FEATURE_KINDS,
  type FeatureKind,
  labels_of,
} from "../learning/features.ts";
import { check_labels, type FitReport, fit_head } from "../learning/fit.ts";
import {
  type FitOptions,
  type FitPlan,
  type LearningProgressCallback,
  plan_fit,
} from "../learning/fit_options.ts";
import {
  read_taught,
  SETTINGS_FILE,
  type Taught,
  TENSORS_FILE,
  write_taught,
} from "../learning/head_file.ts";
import type { Head } from "../learning/heads.ts";
import { LOAD_RULES, SAVE_RULES } from "../loading/option_rules.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { LoadOptions, PretrainedSource } from "../loading/types.ts";
import type { ViTMSNModel } from "../model/modeling_vit_msn.ts";
import { callable, check_options, count_or_null, flag, type Rules } from "../options.ts";
import { best, type ClassificationResult, DEFAULT_TOP_K } from "./image_classification.ts";
import { CALL_RULES, ImagePipeline, type ImagePipelineCallOptions } from "./image_pipeline.ts";

/** What a feature is; pipeline()'s options for "few-shot-image-classification". */
export interface FewShotFeatureOptions {
  /**
   * "cls_before_norm" (default): CLS of the last block before the final layernorm, as the MSN paper evaluates; "cls": after
   * it; "mean", "mean_before_norm": the mean of the patch tokens.
   */
  features?: FeatureKind;
  /** Subtract each feature's own mean and scale it to length 1, as the paper does; default true. */
  normalize?: boolean;
}

export interface FewShotCallOptions extends ImagePipelineCallOptions {
  /** How many labels, best first; default 5, at most all of them. */
  top_k?: number | null;
}

/** The options of add() and evaluate(). */
export interface FewShotImageOptions extends ImagePipelineCallOptions {
  progress_callback?: LearningProgressCallback;
}

export interface FewShotSaveOptions extends Pick<LoadOptions, "signal" | "progress_callback"> {
  /** Whether to write the pictures' features too, so that adding goes on after load(); default true. */
  keep_features?: boolean;
}

/** Pictures by their label. */
export type LabelledImages =
  | Readonly<Record<string, ImageInput | readonly ImageInput[]>>
  | ReadonlyMap<string, ImageInput | readonly ImageInput[]>;

export interface FewShotImageClassificationPipeline {
  (images: readonly ImageInput[], options?: FewShotCallOptions): Promise<ClassificationResult[][]>;
  (image: ImageInput, options?: FewShotCallOptions): Promise<ClassificationResult[]>;
}

const FEATURE_RULES: Rules = { features: Object.keys(FEATURE_KINDS), normalize: flag };
const IMAGE_RULES: Rules = { ...CALL_RULES, progress_callback: callable };

/** The probe is at least this like the one that was saved (cosine of centred features), whatever the dtype. */
const SAME_BACKBONE = 0.99;

/**
 * pipeline("few-shot-image-classification"): labels of one's own from a few pictures each, on a frozen backbone, as the MSN
 * paper's low-shot evaluation does it.
 *
 * A picture goes through the backbone once, when it is added; fitting, and adding or removing others, only uses features.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the interface adds the call signatures of Callable's instances.
export class FewShotImageClassificationPipeline extends ImagePipeline<
  ViTMSNModel,
  [images: ImageInput | readonly ImageInput[], options?: FewShotCallOptions],
  ClassificationResult[] | ClassificationResult[][]
> {
  /** Said outright, since minifiers rename classes. */
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

  /** What a feature is, and whether it is centred and normalised. */
  get feature_options(): Required<FewShotFeatureOptions> {
    return { features: this.#features, normalize: this.#normalize };
  }

  /** The labels that have pictures, in the order in which they were added. */
  get labels(): string[] {
    return labels_of(this.#examples);
  }

  /** The pictures that were added: their ids and labels. */
  get examples(): { id: number; label: string }[] {
    return this.#examples.map(({ id, label }) => ({ id, label }));
  }

  /** Whether there is a head to classify with. */
  get is_fitted(): boolean {
    return this.#fitted !== undefined;
  }

  /** Whether pictures were added or removed since the last fit(), which classifying doesn't know of. */
  get needs_fit(): boolean {
    return this.#fitted === undefined || this.#stale;
  }

  /**
   * Computes the features of one picture or several and keeps them under `label`: all of them, or none if one fails.
   * @returns an id for each picture, for remove().
   * @throws VitMsnError INVALID_ARGUMENT for an empty label, no pictures or a feature that isn't finite; what RawImage.read
   *   throws; DISPOSED; ABORTED.
   */
  async add(
    label: string,
    images: ImageInput | readonly ImageInput[],
    options: FewShotImageOptions = {},
  ): Promise<number[]> {
    this.#check_alive();
    if (typeof label !== "string" || label === "") throw invalid("A label must be a text that isn't empty.");
    check_options("add", options, IMAGE_RULES);
    const count = Array.isArray(images) ? images.length : 1;
    if (count === 0) throw invalid(`The list of pictures for ${JSON.stringify(label)} is empty.`);
    const { progress_callback, ...call } = options;
    const found: Float32Array[] = [];
    for await (const feature of this.#features_of(images, call)) {
      found.push(check_feature(feature, `picture ${found.length} for ${JSON.stringify(label)}`));
      progress_callback?.({ status: "features", done: found.length, total: count });
    }
    const added = found.map((feature) => ({ id: this.#next_id++, label, feature }));
    this.#examples.push(...added);
    this.#stale = true;
    return added.map(({ id }) => id);
  }

  /**
   * Forgets a picture by its id, or all pictures of a label.
   * @returns how many were forgotten.
   * @throws VitMsnError INVALID_ARGUMENT where there is none.
   */
  remove(what: number | string): number {
    this.#check_alive();
    const kept = this.#examples.filter(({ id, label }) => id !== what && label !== what);
    const removed = this.#examples.length - kept.length;
    if (removed === 0) {
      const known = this.labels.map((label) => JSON.stringify(label)).join(", ") || "none";
      throw invalid(`There is no picture with the id or label ${show(what)}; labels are: ${known}.`);
    }
    this.#examples = kept;
    this.#stale = true;
    return removed;
  }

  /**
   * Fits a head to the pictures that were added. The one before stays until the new one is done.
   * @throws VitMsnError INVALID_ARGUMENT for wrong options, fewer than two labels, or `penalty: "auto"` where a label has a
   *   single picture; DISPOSED; ABORTED.
   */
  async fit(options: FitOptions = {}): Promise<FitReport> {
    this.#check_alive();
    const plan = plan_fit(options);
    const examples = [...this.#examples];
    const { head, report } = await fit_head(examples, plan, options);
    this.#check_alive();
    const chosen = plan.method === "logistic_regression" ? { ...plan, penalty: report.penalty } : plan;
    this.#fitted = { head, plan: chosen };
    this.#stale =
      examples.length !== this.#examples.length || examples.some((e, i) => e !== this.#examples[i]);
    return report;
  }

  /** Classifies pictures with the last head that was fitted or loaded. Scores add up to 1 over all labels. */
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
      const sound = check_feature(feature, `picture ${results.length}`);
      results.push(best(head.scores(sound), k, head.labels));
    }
    return Array.isArray(images) ? results : (results[0] as ClassificationResult[]);
  }

  /**
   * How often pictures that weren't added are classified rightly.
   * @param images by label, each of which the head must know.
   */
  async evaluate(images: LabelledImages, options: FewShotImageOptions = {}): Promise<Evaluation> {
    const { head } = this.#ready();
    check_options("evaluate", options, IMAGE_RULES);
    const entries = images instanceof Map ? [...images] : Object.entries(images ?? {});
    const lists = entries.map(
      ([label, given]) =>
        [label as string, (Array.isArray(given) ? given : [given]) as ImageInput[]] as const,
    );
    const unknown = lists.find(([label]) => !head.labels.includes(label));
    if (unknown !== undefined)
      throw invalid(
        `The head doesn't know the label ${JSON.stringify(unknown[0])}: ${head.labels.join(", ")}.`,
      );
    const total = lists.reduce((sum, [, list]) => sum + list.length, 0);
    if (total === 0) throw invalid("There are no pictures to evaluate on.");
    const { progress_callback, ...call } = options;
    const pairs: { label: string; predicted: string }[] = [];
    for (const [label, list] of lists) {
      for await (const feature of this.#features_of(list, call)) {
        const sound = check_feature(feature, `a picture of ${JSON.stringify(label)}`);
        pairs.push({ label, predicted: predict(head, sound) });
        progress_callback?.({ status: "features", done: pairs.length, total });
      }
    }
    return summarise(head.labels, pairs);
  }

  /**
   * How often each picture that was added is classified rightly by a head fitted to all others, with the last fit's method
   * and penalty. It takes a fit for each picture, but no forward. A label's only picture is always wrong.
   */
  async leave_one_out(options: Pick<FitOptions, "signal" | "progress_callback"> = {}): Promise<Evaluation> {
    const { plan } = this.#ready();
    check_options("leave_one_out", options, SAVE_RULES);
    check_labels(this.labels);
    return leave_one_out([...this.#examples], plan, options);
  }

  /**
   * Writes few_shot.json and few_shot.safetensors, for load(): settings, labels, the head if there is one, and the pictures'
   * features, but no pictures.
   * @param directory a folder's path; in browsers a FileSystemDirectoryHandle.
   */
  async save(directory: SaveDirectory, options: FewShotSaveOptions = {}): Promise<void> {
    this.#check_alive();
    check_options("save", options, { ...SAVE_RULES, keep_features: flag });
    const { keep_features = true, ...save_options } = options;
    if (this.#fitted === undefined && (!keep_features || this.#examples.length === 0))
      throw invalid("There is nothing to save yet: add pictures, or call fit() first.");
    const { settings, tensors } = write_taught({
      ...this.feature_options,
      probe: await this.#probe(save_options.signal),
      fitted: this.#fitted,
      needs_fit: this.needs_fit,
      examples: keep_features ? this.#examples : undefined,
    });
    await save_files(directory, { [SETTINGS_FILE]: settings, [TENSORS_FILE]: tensors }, save_options);
  }

  /**
   * Takes over what save() wrote, in place of what was taught here; pipeline()'s `features` and `normalize` give way to the
   * file's. The backbone must be the one it was taught on, which a fixed picture's feature tells; its dtype may differ.
   * @throws VitMsnError NOT_FOUND; INVALID_CHECKPOINT and INVALID_CONFIG for damaged files; CHECKPOINT_MISMATCH for another
   *   backbone.
   */
  async load(source: PretrainedSource, options: LoadOptions = {}): Promise<void> {
    this.#check_alive();
    check_options("load", options, SAVE_RULES, LOAD_RULES);
    const taught = await read_taught(await open_source(source, options));
    await this.#check_backbone(taught, options.signal);
    this.#check_alive();
    this.#features = taught.features;
    this.#normalize = taught.normalize;
    this.#fitted = taught.fitted;
    this.#examples = [...(taught.examples ?? [])];
    this.#next_id = this.#examples.reduce((next, { id }) => Math.max(next, id + 1), 0);
    this.#stale = taught.needs_fit;
  }

  async #check_backbone(
    { probe, features, normalize }: Taught,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { hidden_size } = this.model.config;
    const own = probe.length === hidden_size ? await this.#probe(signal, features, normalize) : undefined;
    if (own !== undefined && cosine(own, probe) >= SAME_BACKBONE) return;
    throw new VitMsnError(
      "CHECKPOINT_MISMATCH",
      "This was taught on another backbone or with another image processor: " +
        (own
          ? "a fixed picture has another feature here."
          : `its features have ${probe.length} numbers, this model's ${hidden_size}.`),
    );
  }

  /**
   * Writes a whole ViTMSNForImageClassification (config.json, model.safetensors, preprocessor_config.json), which
   * from_pretrained and Hugging Face transformers open and which classifies as this pipeline does.
   *
   * It is exact for the default features, and for `features: "cls", normalize: false`; logistic regression and nearest centroid.
   * @throws VitMsnError UNSUPPORTED for other features and for k-NN: no classifier on the CLS token is equal to them.
   */
  async export_model(
    directory: SaveDirectory,
    options: Pick<LoadOptions, "signal" | "progress_callback"> = {},
  ): Promise<void> {
    const { head } = this.#ready();
    check_options("export_model", options, SAVE_RULES);
    await export_model(directory, this.model, this.processor, { head, ...this.feature_options }, options);
  }

  /** Frees the model's memory and forgets what was taught. */
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
        yield normalize ? center_and_normalize(feature) : feature;
      }
    }
  }

  /** The feature of a fixed picture, a gradient in each channel: it depends on the weights and on the processor. */
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
    for await (const feature of features) return check_feature(feature, "a test picture");
    throw invalid("The backbone gave no feature.");
  }

  #ready(): { head: Head; plan: FitPlan } {
    this.#check_alive();
    if (this.#fitted) return this.#fitted;
    throw invalid("There is no head yet: add pictures of two labels at least and call fit(), or load() one.");
  }

  #check_alive(): void {
    if (this.#disposed)
      throw new VitMsnError("DISPOSED", "This pipeline was disposed; make another with pipeline().");
  }
}

/** The cosine of two features with their means subtracted. */
function cosine(a: Float32Array, b: Float32Array): number {
  const [u, v] = [center_and_normalize(a), center_and_normalize(b)];
  return u.reduce((sum, value, i) => sum + value * (v[i] as number), 0);
}
