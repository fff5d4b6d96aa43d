/** @throws Error always. */
export async function start_worker_engine(): Promise<never> {
  throw new Error("edge workers can't start others");
}
