import { numel } from "../dims.ts";
import type { Engine, Scope, TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";
import type { ViTMSNConfig } from "../model/configuration_vit_msn.ts";
import { class_indices, compute_loss, type Labels, problem_type_of } from "../model/losses.ts";
import type { ClassificationInputs, ViTMSNForImageClassification } from "../model/modeling_vit_msn.ts";
import { Tensor } from "../tensor.ts";
import { layers_per_checkpoint } from "./checkpointing.ts";
import { type Freezing, type Parameter, Parameters, training_engine } from "./parameters.ts";
import { Tape } from "./tape.ts";
import { checked_options, type OptionRule, TRAINING_OPTIONS } from "./training_arguments.ts";

export interface GradientOptions extends Freezing {
  /**
   * Recompute activations instead of storing them: less memory, a third more time, the same gradients;
   * default false.
   */
  gradient_checkpointing?: boolean;
  /** Of the cross-entropy, from 0 to 1; default 0. */
  label_smoothing_factor?: number;
}

const { freeze_backbone, freeze_layers, freeze_keys, gradient_checkpointing, label_smoothing_factor } =
  TRAINING_OPTIONS;
const GRADIENT_OPTIONS: Readonly<Record<keyof GradientOptions, OptionRule>> = {
  freeze_backbone,
  freeze_layers,
  freeze_keys,
  gradient_checkpointing,
  label_smoothing_factor,
};

/** A loss and its gradients. */
export interface LossAndGradients {
  loss: number;
  /**
   * By the hub's checkpoint keys without "vit.": one for each parameter that isn't frozen and influenced the
   * loss.
   */
  gradients: Map<string, Tensor<"float32">>;
}

/**
 * The gradients of the loss with respect to the model's parameters, without dropout.
 * @throws VitMsnError INVALID_ARGUMENT, UNSUPPORTED, ABORTED, OUT_OF_MEMORY.
 */
export async function compute_gradients(
  model: ViTMSNForImageClassification,
  inputs: ClassificationInputs & { labels: Labels },
  options: GradientOptions = {},
): Promise<LossAndGradients> {
  checked_options(options, GRADIENT_OPTIONS, "compute_gradients");
  const engine = training_engine(model);
  const parameters = new Parameters(model, options);
  try {
    const tape = new Tape(engine, parameters, {
      layers_per_checkpoint: options.gradient_checkpointing
        ? layers_per_checkpoint(model.config.num_hidden_layers)
        : 0,
      signal: inputs.signal,
    });
    try {
      const loss = await model.with_logits(
        inputs,
        async (logits, scope) => {
          const smoothing = options.label_smoothing_factor ?? 0;
          const loss = training_loss(tape, scope, logits, inputs.labels, model.config, smoothing);
          const [value] = await tape.read(loss);
          await tape.backward(loss);
          return value as number;
        },
        tape,
      );
      return { loss, gradients: await read_gradients(engine, parameters) };
    } finally {
      tape.close();
    }
  } finally {
    await parameters.dispose();
  }
}

/** An engine that also has the label-smoothed loss of training. */
export type LossEngine = Engine & Pick<TrainingEngine, "cross_entropy_smoothed">;

/** The model's loss, with label smoothing for class indices. */
export function training_loss(
  engine: LossEngine,
  scope: Scope,
  logits: TensorHandle,
  labels: Labels,
  config: ViTMSNConfig,
  label_smoothing: number,
): TensorHandle {
  if (label_smoothing === 0 || problem_type_of(labels, config) !== "single_label_classification") {
    return compute_loss(engine, scope, logits, labels, config);
  }
  const indices = class_indices(labels, engine.dims(logits)[0] as number, config.num_labels);
  return scope.use(engine.cross_entropy_smoothed(logits, indices, label_smoothing));
}

async function read_gradients(
  engine: TrainingEngine,
  parameters: Parameters,
): Promise<Map<string, Tensor<"float32">>> {
  const gradients = new Map<string, Tensor<"float32">>();
  for (const parameter of parameters.trained) {
    if (parameter.gradient === undefined) continue;
    split(parameter, await engine.read(parameter.gradient)).forEach((tensor, i) => {
      gradients.set((parameter.specs[i] as { key: string }).key, tensor);
    });
  }
  return gradients;
}

/** Splits a parameter's values into the checkpoint's parameters that it fuses. */
function split({ specs }: Parameter, values: Float32Array): Tensor<"float32">[] {
  let start = 0;
  return specs.map(({ dims }) => {
    const size = numel(dims);
    start += size;
    return new Tensor("float32", values.slice(start - size, start), dims);
  });
}
