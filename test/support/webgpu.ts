import { ViTMSNModel } from "vit-msn";
import { inject } from "vitest";

declare module "vitest" {
  interface ProvidedContext {
    /** Whether this machine has a software GPU for the tests: then none may be skipped for want of one. */
    require_gpu: boolean;
  }
}

const SMALLEST = {
  hidden_size: 4,
  num_hidden_layers: 1,
  num_attention_heads: 1,
  intermediate_size: 4,
  image_size: 2,
  patch_size: 1,
};

/** Why tests on WebGPU can't run here; undefined where they can. */
export const no_webgpu: string | undefined = await obstacle();
if (no_webgpu !== undefined) console.log(`Tests on WebGPU are skipped: ${no_webgpu}`);

async function obstacle(): Promise<string | undefined> {
  try {
    const model = await ViTMSNModel.from_config(SMALLEST, { device: "webgpu" });
    await model.dispose();
    return undefined;
  } catch (error) {
    if (inject("require_gpu")) throw error;
    return error instanceof Error ? error.message : String(error);
  }
}
