import type { TensorHandle } from "../../engine/engine.ts";
import type { TrainingEngine } from "../../engine/training_engine.ts";
import type { ForwardInputs } from "../../model/inputs.ts";
import type { ViTMSNModel } from "../../model/modeling_vit_msn.ts";
import { mix } from "../../model/random.ts";
import { Tensor } from "../../tensor.ts";
import { type GradientSink, Tape, type TapeOptions } from "../tape.ts";

/** The CLS tokens of a group of views, and the batches that they were computed in. */
interface Group {
  cls: TensorHandle;
  batches: readonly { inputs: ForwardInputs; options: TapeOptions }[];
  gradient: TensorHandle | undefined;
}

/** Records nothing, but applies dropout. */
const NO_GRADIENTS: GradientSink = { wants: () => false, add: () => {}, add_linear: () => {} };

/**
 * CLS tokens of more views than memory holds the activations of. The encoder treats each view separately, so that they
 * can pass it in small batches of which nothing is stored. Once the gradient of the CLS tokens is known, each batch
 * passes again, recorded, and is differentiated. Whatever depends on the whole batch is computed from the CLS tokens of
 * all views, so loss and gradients are those of the undivided batch.
 */
export class RecomputedCLS {
  readonly #encoder: ViTMSNModel;
  readonly #engine: TrainingEngine;
  readonly #sink: GradientSink;
  readonly #options: TapeOptions;
  readonly #groups: Group[] = [];
  #batches = 0;

  /**
   * @param sink receives the gradients of the encoder's parameters.
   * @param options of the tapes; each batch derives its own seed.
   */
  constructor(encoder: ViTMSNModel, sink: GradientSink, options: TapeOptions) {
    this.#encoder = encoder;
    this.#engine = encoder.engine as TrainingEngine;
    this.#sink = sink;
    this.#options = options;
  }

  /** A sink for the tape of what reads the CLS tokens: it receives their gradients, too. */
  get reader_sink(): GradientSink {
    const group_of = (handle: unknown) => this.#groups.find(({ cls }) => cls === handle);
    return {
      wants: (handle) => group_of(handle) !== undefined || this.#sink.wants(handle),
      add: (tensor, gradient) => {
        const group = group_of(tensor);
        if (group === undefined) this.#sink.add(tensor, gradient);
        else group.gradient = gradient;
      },
      add_linear: (layer, gradients) => this.#sink.add_linear(layer, gradients),
    };
  }

  /** The CLS tokens [R, D] of a group of views, `size` at a time. close() frees them. */
  async forward(inputs: ForwardInputs, size: number): Promise<TensorHandle> {
    const batches = (await split(inputs, size)).map((inputs) => {
      const seed = mix((this.#options.seed ?? 0) ^ mix(++this.#batches));
      return { inputs, options: { ...this.#options, seed } };
    });
    const parts: Float32Array[] = [];
    for (const { inputs, options } of batches)
      parts.push(await cls_values(this.#encoder, this.#engine, inputs, options));
    const cls = on_engine(this.#engine, parts, this.#encoder.config.hidden_size);
    this.#groups.push({ cls, batches, gradient: undefined });
    return cls;
  }

  /** Passes the gradients of the encoder's parameters to the sink, after the reader's backward. */
  async backward(): Promise<void> {
    for (const { batches, gradient } of this.#groups) {
      if (gradient === undefined) continue;
      const values = await this.#engine.read(gradient);
      let row = 0;
      for (const { inputs, options } of batches) {
        const rows = inputs.pixel_values.dims[0] as number;
        await this.#differentiate(inputs, options, values, row);
        row += rows;
      }
    }
  }

  close(): void {
    for (const { cls, gradient } of this.#groups) {
      this.#engine.free(cls);
      if (gradient !== undefined) this.#engine.free(gradient);
    }
    this.#groups.length = 0;
  }

  async #differentiate(inputs: ForwardInputs, options: TapeOptions, gradients: Float32Array, row: number) {
    const tape = new Tape(this.#engine, this.#sink, options);
    try {
      await this.#encoder.with_cls(
        inputs,
        async (cls) => {
          const [rows, width] = this.#engine.dims(cls) as [number, number];
          const part = gradients.subarray(row * width, (row + rows) * width);
          const gradient = this.#engine.tensor(part, [rows, width]);
          try {
            await tape.backward_from(cls, gradient);
          } finally {
            this.#engine.free(gradient);
          }
        },
        tape,
      );
    } finally {
      tape.close();
    }
  }
}

/** The CLS tokens [R, D] of views without gradients, `size` at a time; the caller frees them. */
export async function cls_in_batches(
  encoder: ViTMSNModel,
  inputs: ForwardInputs,
  size: number,
): Promise<TensorHandle> {
  const engine = encoder.engine as TrainingEngine;
  const parts: Float32Array[] = [];
  for (const batch of await split(inputs, size)) parts.push(await cls_values(encoder, engine, batch, {}));
  return on_engine(engine, parts, encoder.config.hidden_size);
}

async function cls_values(
  encoder: ViTMSNModel,
  engine: TrainingEngine,
  inputs: ForwardInputs,
  options: TapeOptions,
): Promise<Float32Array> {
  const tape = new Tape(engine, NO_GRADIENTS, { ...options, layers_per_checkpoint: 0 });
  try {
    return await encoder.with_cls(inputs, (cls) => engine.read(cls), tape);
  } finally {
    tape.close();
  }
}

function on_engine(engine: TrainingEngine, parts: readonly Float32Array[], width: number): TensorHandle {
  const rows = parts.reduce((sum, { length }) => sum + length, 0) / width;
  const values = new Float32Array(rows * width);
  let offset = 0;
  for (const part of parts) {
    values.set(part, offset);
    offset += part.length;
  }
  return engine.tensor(values, [rows, width]);
}

/** The same inputs in batches of up to `size` views. */
async function split({ pixel_values, ...rest }: ForwardInputs, size: number): Promise<ForwardInputs[]> {
  const data = (await pixel_values.getData()) as Float32Array;
  const [rows, ...dims] = pixel_values.dims as [number, ...number[]];
  const length = data.length / rows;
  return Array.from({ length: Math.ceil(rows / size) }, (_, i) => {
    const [first, last] = [i * size, Math.min(rows, (i + 1) * size)];
    const part = data.subarray(first * length, last * length);
    return { ...rest, pixel_values: new Tensor("float32", part, [last - first, ...dims]) };
  });
}
