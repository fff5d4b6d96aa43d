import { expect, test } from "vitest";
import { Progress } from "../../ts/loading/progress.ts";
import type { ProgressInfo } from "../../ts/loading/types.ts";

test("a download of unknown size stays at 0 %, one of known size at no more than 100 %", () => {
  const seen: ProgressInfo[] = [];
  const report = (loaded: number, total: number) =>
    new Progress((info) => seen.push(info), "model", "file").update(loaded, total);
  report(10, 0);
  report(10, 40);
  report(50, 40);
  expect(seen.map((info) => "progress" in info && info.progress)).toEqual([0, 25, 100]);
});
