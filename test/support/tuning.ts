import { env, Tensor, type TileChoice, ViTMSNForImageClassification } from "vit-msn";
import { open_device } from "./gpu_devices.ts";
import { fixture_files } from "./models.ts";

/** What a program does that tunes a model. */
export interface TuningProgram {
  /** Where choices are cached: a folder in Node, a key of the Cache API in a page. */
  place: string;
  /** Whether an option of from_pretrained names the place, instead of `env`. */
  by_option?: boolean;
  again?: boolean;
}

export interface Tuned {
  choices: readonly TileChoice[];
  logits: number[];
  warnings: string[];
}

/** Tunes a small model on a device that is taken for a GPU, and runs it. */
export async function tune(program: TuningProgram): Promise<Tuned> {
  const { place, by_option = false, again } = program;
  const warnings: string[] = [];
  env.warn = (message) => warnings.push(message);
  if (!by_option) Object.assign(env, { cache_dir: place, cache_key: place });
  const device = await open_device("as a GPU");
  const options = { device, ...(by_option && { cache_dir: place }) };
  const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"), options);
  const data = Float32Array.from({ length: 3072 }, (_, i) => Math.sin(i));
  const pixel_values = new Tensor("float32", data, [1, 3, 32, 32]);
  const choices = await model.tune({ pixel_values }, { again });
  const { logits } = await model.forward({ pixel_values });
  await model.dispose();
  device.destroy();
  return { choices, logits: [...logits.data], warnings };
}
