// Has Dawn compile WGSL files: node dawn.mjs FILE…. Dawn prints the SPIR-V that it gives to the driver; a line "@@ FILE"
// precedes each file's.
import { readFileSync } from "node:fs";
import { create, globals } from "webgpu";

Object.assign(globalThis, globals);
const gpu = create(["backend=vulkan", "enable-dawn-features=dump_shaders"]);
const adapter = await gpu.requestAdapter();
if (adapter === null) throw new Error("no adapter");
/** @type {GPUFeatureName[]} */
const used = ["shader-f16", "subgroups"];
const requiredFeatures = used.filter((feature) => adapter.features.has(feature));
const device = await adapter.requestDevice({ requiredFeatures });
for (const file of process.argv.slice(2)) {
  const code = readFileSync(file, "utf8");
  // naga knows subgroups without the directive.
  const enable = /\b(subgroup|quad)[A-Z]/.test(code) ? "enable subgroups;\n" : "";
  console.log(`\n@@ ${file}`);
  const module = device.createShaderModule({ code: enable + code });
  await device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main" } });
}
device.destroy();
process.exit();
