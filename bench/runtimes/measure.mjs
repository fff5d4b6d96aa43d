/** @typedef {{ label: string, score: number }} Best */

/**
 * Milliseconds until a pipeline is loaded (its package included), until its first answer, and of a later one.
 * @param {() => Promise<() => Promise<Best[]>>} load
 */
export async function measure(load) {
  const start = performance.now();
  const classify = await load();
  const ready_ms = performance.now() - start;
  const [best] = await classify();
  const first_ms = performance.now() - start;
  const later = [];
  for (let i = 0; i < 5; i++) {
    const before = performance.now();
    await classify();
    later.push(performance.now() - before);
  }
  return { ready_ms, first_ms, later_ms: later.sort((a, b) => a - b)[2], best };
}
