import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { runInNewContext } from "node:vm";
import { env, RawImage, Tensor, ViTMSNForImageClassification, ViTMSNModel } from "vit-msn";
import { afterEach, describe, expect, test, vi } from "vitest";
import { download_store, find_place } from "../../ts/loading/storage.web.ts";
import { expect_error } from "../support/errors.ts";
import { read_file } from "../support/files.ts";
import { fixture_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";

// Jest, vm pools of vitest and edge runtimes run code in a separate realm: its arrays, maps and errors aren't instances
// of the classes that Node's own code and its Workers use.

interface Realm {
  Float32Array: Float32ArrayConstructor;
  Uint8Array: Uint8ArrayConstructor;
  ArrayBuffer: ArrayBufferConstructor;
  Map: MapConstructor;
  WebAssembly: typeof WebAssembly;
}
const realm: Realm = runInNewContext("({ Float32Array, Uint8Array, ArrayBuffer, Map, WebAssembly })");
const foreign_bytes = (bytes: Uint8Array) => realm.Uint8Array.from(bytes) as Uint8Array<ArrayBuffer>;
const PIXELS = 3 * 32 * 32;
const values = Array.from({ length: PIXELS }, (_, i) => Math.sin(i));

const original = { ...env };
afterEach(() => {
  Object.assign(env, original);
  vi.unstubAllGlobals();
});

describe("values of another realm", () => {
  test("become tensors and images", async () => {
    const floats = realm.Float32Array.from(values);
    expect(floats).not.toBeInstanceOf(Float32Array);
    const tensor = new Tensor("float32", floats as Float32Array, [1, 3, 32, 32]);
    expect(tensor.data).toBe(floats);
    const wrong = new realm.Uint8Array(4) as never;
    const plain = runInNewContext('({ a: ["b"] })') as never;
    expect((await error_of((async () => new Tensor("float32", plain, [1]))())).message).toMatch(
      /got {"a":\["b"\]}/,
    );
    expect((await error_of((async () => new Tensor("float32", wrong, [4]))())).message).toMatch(
      /got Uint8Array/,
    );
    expect(new RawImage(foreign_bytes(Uint8Array.of(1, 2, 3)), 1, 1, 3).rgb().data).toHaveLength(3);
    const png = await read_file("test/fixtures/images/landscape.png");
    const image = await RawImage.read(foreign_bytes(png));
    expect(await RawImage.read(foreign_bytes(png).buffer)).toEqual(image);
    expect(image).toEqual(await RawImage.read(png));
  });

  test.each([false, true])("pass through a model, in a Worker: %s", async (worker) => {
    const files = new realm.Map<string, Uint8Array<ArrayBuffer>>();
    for (const [name, bytes] of Object.entries(await fixture_files("tiny")))
      files.set(name, foreign_bytes(bytes));
    const model = await ViTMSNForImageClassification.from_pretrained(files, { worker });
    const forward = async (array: Float32Array) =>
      (await model.forward({ pixel_values: new Tensor("float32", array, [1, 3, 32, 32]) })).logits;
    expect(await forward(realm.Float32Array.from(values) as Float32Array)).toEqual(
      await forward(Float32Array.from(values)),
    );
    await model.dispose();
  });

  test("are what Workers send, where the package itself is in another realm", async () => {
    const program = fileURLToPath(new URL("./realms/context.mjs", import.meta.url));
    const run = promisify(execFile)(process.execPath, ["--experimental-vm-modules", program]);
    const [here, in_worker, with_threads, message] = (await run).stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(here).toEqual({ logits: [expect.any(Array)], worker: false });
    expect(in_worker).toEqual({ logits: here.logits, worker: true });
    expect(with_threads).toEqual(in_worker);
    expect(message).toMatch(/got {"a":\[1\]}\.$/);
  });

  test("are the engine's module and its bytes", async () => {
    const bytes = Uint8Array.from(await read_file("dist/vit_msn_simd128.wasm"));
    for (const wasm of [
      new realm.WebAssembly.Module(bytes),
      foreign_bytes(bytes),
      foreign_bytes(bytes).buffer,
    ]) {
      env.wasm = wasm;
      const model = await ViTMSNModel.from_pretrained(await fixture_files("backbone"));
      await model.dispose();
    }
  });
});

describe("pages that aren't at http", () => {
  test.each(["chrome-extension:", "moz-extension:", "tauri:", "app:"])(
    "%s may load its own files",
    async (protocol) => {
      vi.stubGlobal("location", { protocol, href: `${protocol}//host/page.html` });
      expect(await find_place(`${protocol}//host/models/fashion`)).toEqual({
        url: `${protocol}//host/models/fashion`,
      });
      expect(await find_place("./models/fashion")).toEqual({
        url: new URL("./models/fashion", `${protocol}//host/page.html`).href,
      });
      await expect_error(find_place("other:///models"), "INVALID_ARGUMENT", /can't be opened here/);
    },
  );

  test.each(["file:///home/models", "javascript:alert(1)", "data:text/plain,x", "chrome-extension://x/"])(
    "%s isn't one on a page at https",
    async (address) => {
      vi.stubGlobal("location", { protocol: "https:", href: "https://host/page.html" });
      await expect_error(find_place(address), "INVALID_ARGUMENT", /can't be opened here/);
    },
  );

  test("a page from a file can't load files by their addresses", async () => {
    vi.stubGlobal("location", { protocol: "file:", href: "file:///home/page.html" });
    await expect_error(find_place("file:///home/models"), "INVALID_ARGUMENT", /can't be opened here/);
  });
});

describe("a cache that is out of reach is none", () => {
  const url = new URL("https://host/model.safetensors");
  const security = new DOMException(
    "Cache storage is disabled because the context is sandboxed",
    "SecurityError",
  );

  test.each<[string, PropertyDescriptor]>([
    [
      "in a sandboxed frame, where its name throws",
      {
        get: () => {
          throw security;
        },
      },
    ],
    ["where cookies are blocked", { value: { open: () => Promise.reject(security) } }],
    ["on an insecure page", { value: undefined }],
  ])("%s", async (_, descriptor) => {
    const before = Object.getOwnPropertyDescriptor(globalThis, "caches");
    Object.defineProperty(globalThis, "caches", { ...descriptor, configurable: true });
    try {
      const store = await download_store(url, undefined);
      const writer = await store.write();
      await writer.restart({}, false);
      await writer.append(Uint8Array.of(1, 2, 3));
      const file = await writer.commit();
      expect([...(await file.read(0, 3))]).toEqual([1, 2, 3]);
    } finally {
      if (before === undefined) Reflect.deleteProperty(globalThis, "caches");
      else Object.defineProperty(globalThis, "caches", before);
    }
  });

  test("for an extension's own files, which the Cache API doesn't take", async () => {
    vi.stubGlobal("caches", { open: () => expect.unreachable("the cache isn't opened") });
    const store = await download_store(new URL("chrome-extension://id/model.safetensors"), undefined);
    expect(await store.find()).toBeUndefined();
  });
});
