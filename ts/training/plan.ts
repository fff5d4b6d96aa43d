import { VitMsnError } from "../errors.ts";

/** How long a training run is. */
export interface Plan {
  /** Optimiser steps in all. */
  max_steps: number;
  /** Epochs in all, the last of which may be partial. */
  num_train_epochs: number;
  /** Optimiser steps of a whole epoch; undefined for a stream. */
  steps_per_epoch: number | undefined;
}

/**
 * The length of a run: max_steps if it is above 0, else num_train_epochs.
 * @param batches the number of batches in an epoch; undefined for a stream.
 * @throws VitMsnError INVALID_ARGUMENT for a stream without max_steps.
 */
export function make_plan(
  { max_steps, num_train_epochs }: { max_steps: number; num_train_epochs: number },
  batches: number | undefined,
  batches_per_step = 1,
): Plan {
  if (batches === undefined) {
    if (max_steps > 0) return { max_steps, num_train_epochs: 1, steps_per_epoch: undefined };
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      "A stream has no known length, so training on it needs max_steps.",
      {
        details: { argument: "max_steps" },
      },
    );
  }
  const steps_per_epoch = Math.ceil(batches / batches_per_step);
  if (max_steps > 0) {
    return { max_steps, num_train_epochs: Math.ceil(max_steps / steps_per_epoch), steps_per_epoch };
  }
  const steps = Math.ceil(num_train_epochs * steps_per_epoch);
  return { max_steps: steps, num_train_epochs: Math.ceil(num_train_epochs), steps_per_epoch };
}
