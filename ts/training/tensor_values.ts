import { numel } from "../dims.ts";
import { Scope, type TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";

/** A new tensor with the values of x. */
export function copy_of(engine: TrainingEngine, x: TensorHandle): TensorHandle {
  const dims = engine.dims(x);
  const copy = engine.tensor(new Float32Array(numel(dims)), dims);
  engine.accumulate(copy, x, 1);
  return copy;
}

/** Overwrites a tensor's values: subtracts them from themselves, since adding to 0 doesn't round. */
export function overwrite(engine: TrainingEngine, target: TensorHandle, source: TensorHandle): void {
  const former = copy_of(engine, target);
  engine.accumulate(target, former, -1);
  engine.free(former);
  engine.accumulate(target, source, 1);
}

/** As overwrite, with values from JavaScript. */
export function set_values(engine: TrainingEngine, value: TensorHandle, data: Float32Array): void {
  const scope = new Scope(engine);
  try {
    overwrite(engine, value, scope.use(engine.tensor(data, engine.dims(value))));
  } finally {
    scope.close();
  }
}
