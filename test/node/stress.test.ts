import { env } from "vit-msn";
import { expect, test } from "vitest";
import { stress } from "../stress/stress.ts";

// Always the same cases; `npm run stress` draws others.
test("random models, options, aborts and disposals: no wrong answer, no leak, no hang", async () => {
  env.warn = () => {};
  const { cases } = await stress({ seed: 1, until: { cases: 60 }, lanes: 3 });
  expect(cases).toBe(60);
});
