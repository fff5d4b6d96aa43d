import { numel } from "../dims.ts";
import { BYTES_PER_ELEMENT, type WeightDtype } from "../dtypes.ts";
import type { LinearSpec, ParameterSpec } from "./architecture.ts";
import { SCALE_SUFFIX } from "./int8_checkpoint.ts";
import { float_dtype, linear_dtype, rows_per_chunk, type Weights } from "./weights.ts";

/** A parameter on its way into a file. */
interface ExportedParameter {
  key: string;
  dims: readonly number[];
  dtype: WeightDtype;
  byte_length: number;
  bytes(): AsyncGenerator<Uint8Array>;
}

/** Reads parameters back as raw values of their dtype, in pieces, in the checkpoint's order. */
export function* export_weights(weights: Weights): Generator<ExportedParameter> {
  for (const module of weights.modules) {
    if (module.kind === "tensor") yield export_tensor(weights, module);
    else yield* export_linear(weights, module);
  }
}

function export_tensor(weights: Weights, spec: ParameterSpec): ExportedParameter {
  const dtype = float_dtype(weights.dtype);
  return exported(spec, dtype, async function* () {
    yield await weights.engine.parameter_bytes(weights.tensor(spec.key), dtype);
  });
}

function* export_linear(weights: Weights, module: LinearSpec): Generator<ExportedParameter> {
  const { engine } = weights;
  const handle = weights.linear(module.name);
  const dtype = linear_dtype(module, weights.dtype);
  for (const { row, rows, weight, bias } of module.parts) {
    const step = rows_per_chunk(module.in_features, dtype);
    yield exported(weight, dtype, async function* () {
      for (let done = 0; done < rows; done += step) {
        yield await engine.get_rows(handle, row + done, Math.min(step, rows - done));
      }
    });
    if (dtype === "int8") {
      yield exported({ key: weight.key + SCALE_SUFFIX, dims: [rows] }, "float32", async function* () {
        yield await engine.get_scales(handle, row, rows);
      });
    }
    if (bias) {
      yield exported(bias, float_dtype(dtype), async function* () {
        yield await engine.get_bias(handle, row, rows);
      });
    }
  }
}

function exported(
  spec: Pick<ParameterSpec, "key" | "dims">,
  dtype: WeightDtype,
  bytes: () => AsyncGenerator<Uint8Array>,
): ExportedParameter {
  const byte_length = numel(spec.dims) * BYTES_PER_ELEMENT[dtype];
  return { key: spec.key, dims: spec.dims, dtype, byte_length, bytes };
}
