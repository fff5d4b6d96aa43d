import type { ViTMSNConfigInit } from "./configuration_vit_msn.ts";

const SMALL = { hidden_size: 384, num_attention_heads: 6, intermediate_size: 1536 };
const LARGE = {
  hidden_size: 1024,
  num_hidden_layers: 24,
  num_attention_heads: 16,
  intermediate_size: 4096,
  // As in the released configs; it only affects training.
  hidden_dropout_prob: 0.1,
};

/** How the released models' configs differ from the defaults, which are vit-msn-base's. */
const PRESETS = {
  "vit-msn-small": SMALL,
  "vit-msn-base": {},
  "vit-msn-large": LARGE,
  "vit-msn-base-4": { patch_size: 4 },
  "vit-msn-large-7": { ...LARGE, patch_size: 7 },
} as const satisfies Record<string, ViTMSNConfigInit>;

/** The architectures of the models released on the hub as facebook/<name>. */
export type ViTMSNPreset = keyof typeof PRESETS;

/** Their names, the smallest first. */
export const VIT_MSN_PRESETS = Object.freeze(Object.keys(PRESETS)) as readonly ViTMSNPreset[];

/** A preset's fields by its name, with or without "facebook/"; undefined for other names. */
export function preset_fields(name: string): ViTMSNConfigInit | undefined {
  const plain = String(name).replace(/^facebook\//, "");
  return Object.hasOwn(PRESETS, plain) ? PRESETS[plain as ViTMSNPreset] : undefined;
}
