const NONE = "edge workers can't start others";

/** @throws Error always. */
export function start_thread(): never {
  throw new Error(NONE);
}

/** @throws Error always. */
export function start_engine_worker(): never {
  throw new Error(NONE);
}
