import { env } from "../../../ts/env.ts";
import { ViTImageProcessor } from "../../../ts/image/image_processing_vit.ts";
import { ViTMSNConfig } from "../../../ts/model/configuration_vit_msn.ts";

export const dictionary = [
  '"id2label":{"0":"a"}',
  '"label2id":{"a":"0"}',
  '"num_labels":2',
  '"hidden_act":"gelu"',
  '"image_size":[32,32]',
  '"size":{"height":32,"width":32}',
  '"shortest_edge":32',
  '"do_resize":true',
  '"resample":2',
  '"image_mean":[0.5,0.5,0.5]',
  '"image_processor_type":"ViTImageProcessor"',
  '"problem_type":null',
  "NaN",
  "-Infinity",
  "1e400",
  "__proto__",
  "constructor",
  "null",
];

env.warn = () => {};

/** Both files of a model's settings; who can write one can write the other. */
export async function fuzz(bytes: Uint8Array): Promise<void> {
  const config = await ViTMSNConfig.from_pretrained({ "config.json": bytes });
  JSON.stringify(config);
  await ViTImageProcessor.from_pretrained({ "config.json": bytes, "preprocessor_config.json": bytes });
}
