/** @throws Error always. */
export function start_worker(): never {
  throw new Error("edge workers can't start others");
}

export { start_worker as thread };
