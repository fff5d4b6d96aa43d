import { createRequire } from "node:module";
import { resolve } from "node:path";
import type { ViTMSNForImageClassification } from "../../ts/model/modeling_vit_msn.ts";
import type { Tensor } from "../../ts/tensor.ts";

/** Another runtime with the model's weights. */
export interface Peer {
  /** Logits [batch · num_labels]. */
  run(pixel_values: Tensor<"float32">): Promise<Float32Array>;
  close(): Promise<void>;
}

/** What a runtime is made from. */
export interface PeerSource {
  model: ViTMSNForImageClassification;
  /** The same model as ONNX. */
  onnx: () => Promise<Uint8Array<ArrayBuffer>>;
  /** The folder whose node_modules has the runtime. */
  folder: string;
  num_threads: number;
}

export type OpenPeer = (source: PeerSource) => Promise<Peer>;

/** A package that this one doesn't depend on, from the node_modules of a folder. */
export function require_from<Module>(folder: string, name: string, install: readonly string[]): Module {
  return require_at(folder)(resolve_from(folder, name, install)) as Module;
}

/** The package's entry file. */
export function resolve_from(folder: string, name: string, install: readonly string[]): string {
  try {
    return require_at(folder).resolve(name);
  } catch (cause) {
    throw new Error(
      `${name} is not installed. In an empty folder: npm install ${install.join(" ")}; then --peers-dir that folder.`,
      { cause },
    );
  }
}

function require_at(folder: string): NodeJS.Require {
  return createRequire(resolve(folder, "package.json"));
}
