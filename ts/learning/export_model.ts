import { save_files } from "#save";
import { VitMsnError } from "../errors.ts";
import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { PROCESSOR_FILE } from "../image/image_processor_config.ts";
import { float32_tensor, type TensorToWrite } from "../loading/formats/write_safetensors.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { LoadOptions } from "../loading/types.ts";
import { classifier_checkpoint_key } from "../model/checkpoint_keys.ts";
import { ViTMSNConfig } from "../model/configuration_vit_msn.ts";
import { export_weights } from "../model/export_weights.ts";
import { ViTMSNForImageClassification, type ViTMSNModel } from "../model/modeling_vit_msn.ts";
import { checkpoint_files } from "../model/save_model.ts";
import type { FeatureKind } from "./features.ts";
import { type Head, LinearHead } from "./heads.ts";

/** The classifier of an exported checkpoint, and whether it needs another final layernorm. */
export interface Classifier {
  /** [labels, size]. */
  weight: Float32Array;
  /** [labels]. */
  bias: Float32Array;
  /** The checkpoint's final layernorm has weight 1 and bias 0 instead of the backbone's. */
  plain_layernorm: boolean;
}

/** A layernorm's weight and bias, [size] each. */
interface Affine {
  weight: Float32Array;
  bias: Float32Array;
}

/**
 * Undoing the layernorm's weight g and bias b may amplify the rounding of its output by |b/g| or by the ratio
 * of the weights; beyond this, float32 would lose more than three of its seven digits.
 */
const MAX_GAIN = 1e3;

/**
 * The classifier on the CLS token after the final layernorm that is equivalent to `head`.
 *
 * The layernorm computes y = g∘z + b with z = (x - mean)/√(var + ε). The paper's feature is (x - mean)/‖x - mean‖,
 * and since ‖x - mean‖ = √D·√var, it is z/√D except for ε. So W·f = Σ W/(√D·g)·(y - b): exact up to
 * ε/2var, which is the same for all classes. If g is zero or tiny, y has lost that part of z; then the
 * checkpoint's layernorm becomes plain (g = 1, b = 0). Features after the norm that aren't normalised are y
 * itself. No linear layer can normalise, nor read other tokens.
 * @throws VitMsnError UNSUPPORTED if no such classifier exists.
 */
export function fold_head(
  head: Head,
  features: FeatureKind,
  normalize: boolean,
  layernorm: Affine,
): Classifier {
  if (!(head instanceof LinearHead))
    throw unsupported("k-NN isn't a linear layer; fit logistic_regression or nearest_centroid instead");
  if (features === "cls" && !normalize)
    return { weight: head.weight, bias: head.bias, plain_layernorm: false };
  if (features !== "cls_before_norm" || !normalize) {
    throw unsupported(
      `the checkpoint's classifier reads the CLS token after the final layernorm, from which "${features}" with ` +
        `normalize: ${normalize} can't be computed; use features "cls_before_norm" with normalize: true, or "cls" with normalize: false`,
    );
  }
  return undo_layernorm(head, layernorm);
}

function undo_layernorm(head: LinearHead, { weight: gain, bias: shift }: Affine): Classifier {
  const { size, labels } = head;
  const root = Math.sqrt(size);
  const largest = gain.reduce((max, g) => Math.max(max, Math.abs(g)), 0);
  const plain_layernorm = gain.some(
    (g, k) => !(Math.max(largest, Math.abs(shift[k] as number)) <= MAX_GAIN * Math.abs(g)),
  );
  if (plain_layernorm) return { weight: head.weight.map((w) => w / root), bias: head.bias, plain_layernorm };
  const weight = head.weight.map((w, i) => w / (root * (gain[i % size] as number)));
  const bias = Float32Array.from(labels, (_, c) => {
    let sum = head.bias[c] as number;
    for (let k = 0; k < size; k++) sum -= (weight[c * size + k] as number) * (shift[k] as number);
    return sum;
  });
  return { weight, bias, plain_layernorm };
}

/**
 * Writes config.json, model.safetensors and preprocessor_config.json of a ViTMSNForImageClassification: the
 * backbone with `head` as its classifier, which is float32 whatever the backbone's dtype.
 */
export async function export_model(
  directory: SaveDirectory,
  model: ViTMSNModel,
  processor: ViTImageProcessor,
  head: { head: Head; features: FeatureKind; normalize: boolean },
  options: Pick<LoadOptions, "signal" | "progress_callback">,
): Promise<void> {
  const layernorm = {
    weight: await model.engine.read(model.weights.tensor("layernorm.weight")),
    bias: await model.engine.read(model.weights.tensor("layernorm.bias")),
  };
  const classifier = fold_head(head.head, head.features, head.normalize, layernorm);
  const { labels } = head.head;
  const { id2label: _, label2id: __, num_labels: ___, ...fields } = model.config.to_dict();
  const id2label = Object.fromEntries(labels.entries());
  const config = new ViTMSNConfig({ ...fields, id2label, problem_type: "single_label_classification" });
  const parameters = [...backbone_parameters(model, classifier), ...classifier_parameters(classifier)];
  const { architecture } = ViTMSNForImageClassification;
  const files = checkpoint_files(config, model.dtype, architecture, parameters);
  await save_files(directory, { ...files, [PROCESSOR_FILE]: processor.to_json_string() }, options);
}

function* backbone_parameters(model: ViTMSNModel, { plain_layernorm }: Classifier): Generator<TensorToWrite> {
  for (const parameter of export_weights(model.weights)) {
    const key = classifier_checkpoint_key(parameter.key);
    const is_final_norm = parameter.key === "layernorm.weight" || parameter.key === "layernorm.bias";
    if (plain_layernorm && is_final_norm) {
      const value = parameter.key === "layernorm.weight" ? 1 : 0;
      yield float32_tensor(key, parameter.dims, new Float32Array(parameter.dims[0] as number).fill(value));
    } else {
      yield { ...parameter, key, bytes: parameter.bytes() };
    }
  }
}

function classifier_parameters({ weight, bias }: Classifier): TensorToWrite[] {
  const labels = bias.length;
  return [
    float32_tensor("classifier.weight", [labels, weight.length / labels], weight),
    float32_tensor("classifier.bias", [labels], bias),
  ];
}

function unsupported(why: string): VitMsnError {
  return new VitMsnError("UNSUPPORTED", `This head can't be exported as a classifier: ${why}.`);
}
