// Loads a model with threads and disposes it, while it stays referenced: prints how many of the engine's memories the
// garbage collector couldn't free. Usage: node --expose-gc disposed_memory.mjs FOLDER THREADS
import { setImmediate } from "node:timers/promises";

const [folder = "", threads = "1"] = process.argv.slice(2);
/** @type {WeakRef<WebAssembly.Memory>[]} */
const memories = [];
WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
  construct(target, args) {
    const memory = Reflect.construct(target, args);
    memories.push(new WeakRef(memory));
    return memory;
  },
});

const { ViTMSNForImageClassification } = await import("vit-msn");
const model = await ViTMSNForImageClassification.from_pretrained(folder, {
  local_files_only: true,
  num_threads: Number(threads),
});
const { threads: started } = model.engine_info;
await model.dispose();
for (let i = 0; i < 10; i++) {
  await setImmediate();
  globalThis.gc?.();
}
const left = memories.filter((memory) => memory.deref() !== undefined).length;
console.log(JSON.stringify({ started, created: memories.length, left, config: model.config !== undefined }));
