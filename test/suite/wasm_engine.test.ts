import { afterEach, describe, expect, test, vi } from "vitest";
import { load_wasm_module } from "../../ts/engine/wasm/load_wasm.ts";
import { create_wasm_engine } from "../../ts/engine/wasm/wasm_engine.ts";
import { VitMsnError } from "../../ts/errors.ts";
import { read_file } from "../support/files.ts";

/** Makes the next layer_norm trap, as a fault inside the kernels would. */
const faults = vi.hoisted(() => ({ trap: false }));
vi.mock("../../ts/engine/generated/glue.js", async (import_original) => {
  const { default: create_glue } =
    await import_original<typeof import("../../ts/engine/generated/glue.js")>();
  return {
    default: () => {
      const glue = create_glue();
      const layer_norm: typeof glue.layer_norm = (...args) => {
        if (faults.trap) throw new WebAssembly.RuntimeError("unreachable executed");
        return glue.layer_norm(...args);
      };
      return { ...glue, layer_norm };
    },
  };
});
afterEach(() => {
  faults.trap = false;
});

function code_of(action: () => unknown): string | undefined {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(VitMsnError);
    return (error as VitMsnError).code;
  }
  return undefined;
}

async function wasm_bytes(): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await read_file("dist/vit_msn_simd128.wasm"));
}

async function new_engine() {
  return create_wasm_engine(await load_wasm_module(await wasm_bytes()));
}

describe("the WebAssembly engine", () => {
  test("reports that it is dead after a fault, and no other engine is affected", async () => {
    const [engine, other] = [await new_engine(), await new_engine()];
    const x = engine.tensor(Float32Array.of(1, 2), [1, 2]);
    faults.trap = true;
    expect(code_of(() => engine.layer_norm(x, x, x, 1e-6))).toBe("ENGINE_DEAD");
    faults.trap = false;
    expect(code_of(() => engine.tensor(Float32Array.of(1), [1]))).toBe("ENGINE_DEAD");
    expect(code_of(() => engine.free(x))).toBeUndefined();
    engine.dispose();
    expect(await other.read(other.tensor(Float32Array.of(3), [1]))).toEqual(Float32Array.of(3));
    other.dispose();
  });

  test("errors of the kernels keep their code and leave it usable", async () => {
    const engine = await new_engine();
    const x = engine.tensor(new Float32Array(12), [1, 2, 6]);
    expect(code_of(() => engine.tensor(new Float32Array(3), [4]))).toBe("INVALID_ARGUMENT");
    expect(code_of(() => engine.scaled_dot_product_attention(x, 4))).toBe("INVALID_ARGUMENT");
    expect(engine.dims(engine.scaled_dot_product_attention(x, 2))).toEqual([1, 2, 2]);
    engine.free(x);
    expect(code_of(() => engine.dims(x))).toBe("DISPOSED");
    expect(code_of(() => engine.free(x))).toBe("DISPOSED");
    expect(engine.memory().handles).toBe(1);
    engine.dispose();
    expect(code_of(() => engine.memory())).toBe("DISPOSED");
  });

  test("a linear layer that lacks rows is never used", async () => {
    const engine = await new_engine();
    const x = engine.tensor(Float32Array.of(1, 2), [1, 2]);
    const weights = engine.linear_weights(2, 2, "float32", false);
    engine.set_rows(weights, 0, new Uint8Array(Float32Array.of(1, 1).buffer), "float32");
    expect(code_of(() => engine.linear(x, weights, "identity"))).toBe("INVALID_ARGUMENT");
    engine.set_rows(weights, 1, new Uint8Array(Float32Array.of(2, -1).buffer), "float32");
    expect(await engine.read(engine.linear(x, weights, "relu"))).toEqual(Float32Array.of(3, 0));
    engine.dispose();
  });
});

describe("loading the WebAssembly", () => {
  test("takes a Module, bytes, a URL or a Response", async () => {
    const bytes = await wasm_bytes();
    const module = await WebAssembly.compile(bytes);
    const url = new URL(URL.createObjectURL(new Blob([bytes], { type: "application/wasm" })));
    for (const input of [module, bytes, bytes.buffer, url, new Response(bytes)]) {
      expect(await load_wasm_module(input)).toBeInstanceOf(WebAssembly.Module);
    }
  });

  test("reports what it got where that isn't WebAssembly", async () => {
    const page = new TextEncoder().encode("<!doctype html>");
    await expect(load_wasm_module(page)).rejects.toThrow('starts with "<!doctype html>"');
    await expect(load_wasm_module((await wasm_bytes()).slice(0, 1000))).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
    await expect(load_wasm_module(new Response("", { status: 404 }))).rejects.toMatchObject({ code: "IO" });
  });
});
