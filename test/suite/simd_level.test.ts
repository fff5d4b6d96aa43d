import { afterEach, describe, expect, test, vi } from "vitest";
import { choose_level, obstacle_to_threads } from "../../ts/engine/wasm/simd_level.ts";

afterEach(() => {
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
});

describe("the reason why there are no threads", () => {
  test("a page that isn't isolated, and how to isolate it", () => {
    vi.stubGlobal("crossOriginIsolated", false);
    expect(obstacle_to_threads(2)).toMatch(/crossOriginIsolated: serve it with the headers/);
  });

  test("an isolated page of a browser that has no shared memory", () => {
    vi.stubGlobal("crossOriginIsolated", true);
    vi.stubGlobal("SharedArrayBuffer", undefined);
    expect(obstacle_to_threads(2)).toMatch(/lacks SharedArrayBuffer/);
  });
});

test("the reason why there is no relaxed SIMD names the runtimes that have it", () => {
  vi.spyOn(WebAssembly, "validate").mockReturnValue(false);
  const { level, reasons } = choose_level(1);
  expect(level).toBe("simd128");
  expect(reasons[0]).toMatch(/Firefox/);
});
