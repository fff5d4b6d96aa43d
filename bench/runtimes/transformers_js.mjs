// As vit_msn.mjs, with transformers.js as it is installed: in Node, Deno and Bun on onnxruntime-node, which is native code.
import process from "node:process";
import { measure } from "./measure.mjs";

const [folder = "", name = "", image = ""] = process.argv.slice(2);
const result = await measure(async () => {
  // @ts-expect-error It isn't a dependency: it lies in the folder that --peers-dir names.
  const { env, pipeline } = await import("@huggingface/transformers");
  env.localModelPath = folder;
  env.allowRemoteModels = false;
  const session_options = { intraOpNumThreads: 1, interOpNumThreads: 1 };
  const classify = await pipeline("image-classification", name, {
    dtype: "fp32",
    device: "cpu",
    session_options,
  });
  return () => classify(image, { top_k: 1 });
});
console.log(JSON.stringify(result));
process.exit();
