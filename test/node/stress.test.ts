import { env } from "vit-msn";
import { expect, test } from "vitest";
import { stress } from "../stress/stress.ts";

// Always the same cases, as far as ten seconds reach; `npm run stress` draws others.
test("ten seconds of random models, options, aborts and disposals", async () => {
  env.warn = () => {};
  const { cases } = await stress({ seed: 1, ms: 10_000, lanes: 3 });
  expect(cases).toBeGreaterThan(10);
});
