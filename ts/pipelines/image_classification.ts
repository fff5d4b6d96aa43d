import type { ImageInput } from "../image/raw_image.ts";
import type { ViTMSNConfig } from "../model/configuration_vit_msn.ts";
import type { ViTMSNForImageClassification } from "../model/modeling_vit_msn.ts";
import { check_options, count_or_null, type Rules } from "../options.ts";
import { CALL_RULES, ImagePipeline, type ImagePipelineCallOptions } from "./image_pipeline.ts";

export type FunctionToApply = "softmax" | "sigmoid" | "none";

/** One class and its score. */
export interface ClassificationResult {
  label: string;
  score: number;
}

export interface ImageClassificationOptions extends ImagePipelineCallOptions {
  /**
   * The number of classes to return, best first; default 5, at most all. null means the default, as in the
   * reference.
   */
  top_k?: number | null;
  /**
   * How logits become scores. Unset: "none" for regression, "sigmoid" for multi-label models and for a single
   * label, else "softmax".
   */
  function_to_apply?: FunctionToApply | null;
}

export const DEFAULT_TOP_K = 5;
const RULES: Rules = {
  top_k: count_or_null,
  function_to_apply: [
    '"softmax", "sigmoid" or "none"',
    (name) => name === null || Object.hasOwn(SCORES, String(name).toLowerCase()),
  ],
};

/** The call signatures: a list of results for one image, and a list of such lists for several images. */
export interface ImageClassificationPipeline {
  (images: readonly ImageInput[], options?: ImageClassificationOptions): Promise<ClassificationResult[][]>;
  (image: ImageInput, options?: ImageClassificationOptions): Promise<ClassificationResult[]>;
}

/** pipeline("image-classification"), as transformers' ImageClassificationPipeline. */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the interface adds the call signatures of Callable's instances.
export class ImageClassificationPipeline extends ImagePipeline<
  ViTMSNForImageClassification,
  [images: ImageInput | readonly ImageInput[], options?: ImageClassificationOptions],
  ClassificationResult[] | ClassificationResult[][]
> {
  /** Set explicitly, since minifiers rename classes. */
  static override readonly name: string = "ImageClassificationPipeline";
  readonly task = "image-classification";

  override async _call(
    images: ImageInput | readonly ImageInput[],
    options: ImageClassificationOptions = {},
  ): Promise<ClassificationResult[] | ClassificationResult[][]> {
    check_options("The image-classification call", options, CALL_RULES, RULES);
    const { config } = this.model;
    const apply = SCORES[score_function(options.function_to_apply, config)];
    const top_k = options.top_k ?? DEFAULT_TOP_K;
    const results: ClassificationResult[][] = [];
    for await (const inputs of this.batches(images, options)) {
      const { logits } = await this.model.forward(inputs);
      const [batch, num_labels] = logits.dims as [number, number];
      for (let i = 0; i < batch; i++) {
        const scores = apply(logits.data.subarray(i * num_labels, (i + 1) * num_labels));
        results.push(best(scores, top_k, config.id2label));
      }
    }
    return Array.isArray(images) ? results : (results[0] as ClassificationResult[]);
  }
}

function score_function(given: string | null | undefined, config: ViTMSNConfig): FunctionToApply {
  if (given != null) return given.toLowerCase() as FunctionToApply;
  if (config.problem_type === "regression") return "none";
  const one_or_several = config.problem_type === "multi_label_classification" || config.num_labels === 1;
  return one_or_several ? "sigmoid" : "softmax";
}

const SCORES: Record<FunctionToApply, (logits: Float32Array) => ArrayLike<number>> = {
  none: (logits) => logits,
  sigmoid: (logits) => Float64Array.from(logits, (x) => 1 / (1 + Math.exp(-x))),
  softmax: (logits) => {
    const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const exps = Float64Array.from(logits, (x) => Math.exp(x - max));
    const sum = exps.reduce((a, b) => a + b, 0);
    return exps.map((x) => x / sum);
  },
};

/** The `top_k` labels with the highest scores, best first. */
export function best(
  scores: ArrayLike<number>,
  top_k: number,
  labels: Readonly<Record<number, string>>,
): ClassificationResult[] {
  const results = Array.from(scores, (score, id) => ({ label: labels[id] as string, score }));
  return results.sort((a, b) => b.score - a.score).slice(0, top_k);
}
