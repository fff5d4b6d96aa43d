import { address_space_hint } from "#environment";
import { VitMsnError } from "../errors.ts";

/** The error if there is no memory for an engine. */
export function engine_not_started(cause: unknown): VitMsnError {
  const reason = address_space_hint() ?? String(cause);
  return new VitMsnError("OUT_OF_MEMORY", `The engine can't start: ${reason}`, { cause });
}

/** The error of every call of a disposed engine. */
export function engine_disposed(): VitMsnError {
  return new VitMsnError("DISPOSED", "This model's engine was disposed; load the model again.");
}

/** The error of every call once the engine has crashed. */
export function engine_dead(fault: string, cause?: unknown): VitMsnError {
  return new VitMsnError(
    "ENGINE_DEAD",
    `The engine of this model crashed; load the model again. Cause: ${fault}`,
    { cause },
  );
}
