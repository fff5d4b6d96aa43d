// The package in a separate vm context, as Jest runs it: prints logits of engines on its thread and in Workers as JSON.
// Usage: node --experimental-vm-modules context.mjs
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { createContext, runInContext, SourceTextModule, SyntheticModule } from "node:vm";

/** @typedef {import("node:vm").Module} Module */

/** What the language itself doesn't define comes from Node, as in Jest. */
const context = createContext();
const own = new Set(runInContext("Object.getOwnPropertyNames(globalThis)", context));
for (const [name, descriptor] of Object.entries(Object.getOwnPropertyDescriptors(globalThis)))
  if (!own.has(name) || name === "console") Object.defineProperty(context, name, descriptor);

/** @type {Map<string, Promise<Module>>} */
const modules = new Map();

/** @param {string} specifier @param {string} parent @returns {Promise<Module>} */
function load(specifier, parent) {
  const url = specifier === "vit-msn" ? import.meta.resolve(specifier) : new URL(specifier, parent).href;
  const found = modules.get(url) ?? create(url);
  modules.set(url, found);
  return found;
}

/** @param {string} url @returns {Promise<Module>} */
async function create(url) {
  if (url.startsWith("node:")) {
    const exports = await import(url);
    const names = Object.keys(exports);
    return new SyntheticModule(
      names,
      function () {
        for (const name of names) this.setExport(name, exports[name]);
      },
      { context, identifier: url },
    );
  }
  return new SourceTextModule(await readFile(fileURLToPath(url), "utf8"), {
    context,
    identifier: url,
    initializeImportMeta: (meta) => Object.assign(meta, { url }),
    importModuleDynamically: async (specifier) => evaluated(await load(specifier, url)),
  });
}

/** @param {Module} module */
async function evaluated(module) {
  if (module.status === "unlinked") await module.link((specifier, from) => load(specifier, from.identifier));
  await module.evaluate();
  return module;
}

const program = new SourceTextModule(
  `
    import { Tensor, ViTMSNForImageClassification } from "vit-msn";
    const pixels = Float32Array.from({ length: 3 * 32 * 32 }, (_, i) => Math.sin(i));
    const pixel_values = new Tensor("float32", pixels, [1, 3, 32, 32]);
    for (const options of [{}, { worker: true }, { worker: true, num_threads: 2 }]) {
      const model = await ViTMSNForImageClassification.from_pretrained("test/fixtures/tiny", options);
      const { logits } = await model.forward({ pixel_values, output_attentions: true });
      console.log(JSON.stringify({ logits: logits.tolist(), worker: model.engine_info.worker }));
      await model.dispose();
    }
    const error = await Promise.resolve().then(() => new Tensor("float32", { a: [1] }, [1])).catch((error) => error);
    console.log(JSON.stringify(error.message));
  `,
  { context, identifier: import.meta.url },
);
await evaluated(program);
