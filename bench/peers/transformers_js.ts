import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { type OpenPeer, type PeerSource, require_from, resolve_from } from "./peer.ts";

const NAME = "@huggingface/transformers";
const INSTALL = [NAME];
/** Where transformers.js looks for a runtime that its host brings. */
const ORT_SYMBOL = Symbol.for("onnxruntime");

interface TransformersModule {
  env: { localModelPath: string; allowRemoteModels: boolean; useWasmCache: boolean };
  Tensor: new (type: "float32", data: Float32Array, dims: readonly number[]) => unknown;
  AutoModelForImageClassification: {
    from_pretrained(
      name: string,
      options: object,
    ): Promise<{
      (inputs: object): Promise<{ logits: { data: Float32Array } }>;
      dispose(): Promise<unknown>;
    }>;
  };
}

/**
 * transformers.js in float32 on its own onnxruntime-web. In Node it would take onnxruntime-node, which is
 * native code; a runtime at Symbol.for("onnxruntime") goes before that.
 */
export const open_transformers_js: OpenPeer = async (source) => {
  const ort = require_its_own_ort(source.folder);
  ort.env.wasm.numThreads = source.num_threads;
  (globalThis as Record<symbol, unknown>)[ORT_SYMBOL] = ort;
  const { env, Tensor, AutoModelForImageClassification } = require_from<TransformersModule>(
    source.folder,
    NAME,
    INSTALL,
  );
  const folder = await write_model(source);
  env.localModelPath = dirname(folder);
  env.allowRemoteModels = false;
  env.useWasmCache = false;
  const model = await AutoModelForImageClassification.from_pretrained(basename(folder), {
    dtype: "fp32",
    device: "auto",
    session_options: { executionProviders: ["wasm"] },
    local_files_only: true,
  });
  rmSync(folder, { recursive: true });
  return {
    async run({ data, dims }) {
      return (await model({ pixel_values: new Tensor("float32", data, dims) })).logits.data;
    },
    async close() {
      await model.dispose();
    },
  };
};

interface OrtModule {
  env: { wasm: { numThreads: number; wasmPaths: string } };
}

/** The onnxruntime-web that transformers.js depends on, which may be another than this package's. */
function require_its_own_ort(folder: string): OrtModule {
  const its_folder = dirname(resolve_from(folder, NAME, INSTALL));
  const ort = require_from<OrtModule>(its_folder, "onnxruntime-web", INSTALL);
  // transformers.js would get the binary from a CDN.
  const dist = dirname(resolve_from(its_folder, "onnxruntime-web", INSTALL));
  ort.env.wasm.wasmPaths = pathToFileURL(join(dist, "/")).href;
  return ort;
}

/** A folder as the hub has it for transformers.js. */
async function write_model({ model, onnx }: PeerSource): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "vit-msn-bench-"));
  mkdirSync(join(folder, "onnx"));
  writeFileSync(join(folder, "config.json"), JSON.stringify(model.config.to_dict()));
  writeFileSync(join(folder, "onnx/model.onnx"), await onnx());
  return folder;
}
