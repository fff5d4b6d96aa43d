import { expect, test } from "vitest";
import { Nudger, SubmissionLimit } from "../../ts/engine/webgpu/submissions.ts";

const GFLOP = 1e9;

/** The limit after the same measurement many times. */
function settled(limit: SubmissionLimit, ms_per_gflop: number): number {
  for (let i = 0; i < 40; i++) limit.measured(limit.work, (limit.work / GFLOP) * ms_per_gflop);
  return limit.work;
}

test("a submission's limit is the work of a tenth of a second", () => {
  const limit = new SubmissionLimit(false);
  expect(settled(limit, 100)).toBeCloseTo(GFLOP, -6);
  expect(settled(limit, 1)).toBeCloseTo(100 * GFLOP, -8);
  expect(settled(limit, 1000)).toBeCloseTo(0.1 * GFLOP, -5);
});

test("the first limit is short on weak GPUs, and shorter on software", () => {
  expect(new SubmissionLimit(false).work).toBe(5 * GFLOP);
  expect(new SubmissionLimit(true).work).toBe(GFLOP);
});

test("one slow or fast measurement changes the limit by a small factor", () => {
  const limit = new SubmissionLimit(false);
  const first = limit.work;
  limit.measured(first, 1e9);
  expect(limit.work).toBe(first / 4);
  const other = new SubmissionLimit(false);
  other.measured(first, 0);
  expect(other.work).toBe(4 * first);
});

test("short answers to little work say nothing, long ones do", () => {
  const limit = new SubmissionLimit(false);
  const first = limit.work;
  limit.measured(first / 100, 5);
  limit.measured(0, 1000);
  expect(limit.work).toBe(first);
  limit.measured(first / 100, 500);
  expect(limit.work).toBeLessThan(first);
});

test("two submissions that a device reports at once don't look faster than they were", () => {
  const limit = new SubmissionLimit(false);
  for (let i = 0; i < 40; i++) {
    limit.measured(limit.work, (2 * limit.work * 100) / GFLOP);
    limit.measured(limit.work, 0);
  }
  expect(limit.work).toBeLessThan(2 * GFLOP);
});

test("each loss of the device halves the time of a submission", () => {
  const limit = new SubmissionLimit(false);
  const before = settled(limit, 100);
  limit.device_lost();
  expect(limit.work).toBe(before / 2);
  expect(settled(limit, 100)).toBeCloseTo(before / 2, -6);
});

test("each adapter has its limit, which its engines share", () => {
  const adapter = { name: "a", vendor: "", architecture: "", is_software: false, features: [] };
  const limit = SubmissionLimit.of(adapter);
  expect(SubmissionLimit.of({ ...adapter })).toBe(limit);
  expect(SubmissionLimit.of({ ...adapter, name: "b" })).not.toBe(limit);
});

test("the device is nudged until all answers have arrived, and not longer", async () => {
  let submissions = 0;
  let answer = () => {};
  const submit = (buffers: Iterable<GPUCommandBuffer>) => {
    expect([...buffers]).toEqual([]);
    submissions += 1;
    if (submissions === 3) answer();
  };
  const nudger = new Nudger({ submit } as GPUQueue);
  const waiting = new Promise<void>((resolve) => {
    answer = resolve;
  });
  await Promise.all([nudger.until(waiting), nudger.until(waiting)]);
  expect(submissions).toBe(3);
  await expect(nudger.until(Promise.reject(new Error("lost")))).rejects.toThrow("lost");
  expect(submissions).toBe(3);
});
