import { describe, expect, it } from "vitest";
import { read_file } from "../support/files.ts";

describe("read_file", () => {
  it("reads a fixture's bytes", async () => {
    const png = await read_file("test/fixtures/images/exact.png");
    expect([...png.subarray(0, 4)]).toEqual([0x89, 0x50, 0x4e, 0x47]);
  });

  it("reads the default model's config", async () => {
    const config = JSON.parse(new TextDecoder().decode(await read_file("models/fashion/config.json")));
    expect(config.model_type).toBe("vit_msn");
  });

  it("refuses a file that isn't there", async () => {
    await expect(read_file("test/fixtures/no/such.file")).rejects.toThrow();
  });
});
