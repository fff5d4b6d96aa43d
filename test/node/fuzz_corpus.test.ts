import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type FuzzTarget, run_target } from "../fuzz/target.ts";

const CORPUS = "test/fuzz/corpus";

describe.each(readdirSync(CORPUS))("%s", (name) => {
  test.each(readdirSync(`${CORPUS}/${name}`))("refuses or reads %s", async (file) => {
    const target: FuzzTarget = await import(`../fuzz/targets/${name}.ts`);
    const bytes = new Uint8Array(readFileSync(`${CORPUS}/${name}/${file}`));
    await expect(run_target(target, bytes)).resolves.toBeUndefined();
  });
});
