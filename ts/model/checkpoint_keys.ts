/**
 * Checkpoint keys of every layout a user meets, brought to one: the hub's (transformers v4) without the "vit." prefix.
 *
 * - the hub's backbones: `encoder.layer.0.attention.attention.query.weight`
 * - v4 classifiers: the same under `vit.`
 * - transformers v5 in memory: `vit.layers.0.attention.q_proj.weight`, `vit.layers.0.mlp.fc1.weight`
 * - v5's default save of a classifier: `vit.embeddings.*` beside bare `encoder.layer.*`
 *
 * Source: transformers' conversion_mapping.py, entry "ViTModel".
 */
const PREFIXES = /^(module\.)?(vit\.|vit_msn\.)?/;
const V5_LAYER = /^layers\.(\d+)\.(.+)$/;
const V5_NAMES: readonly [RegExp, string][] = [
  [/^attention\.q_proj\./, "attention.attention.query."],
  [/^attention\.k_proj\./, "attention.attention.key."],
  [/^attention\.v_proj\./, "attention.attention.value."],
  [/^attention\.o_proj\./, "attention.output.dense."],
  [/^mlp\.fc1\./, "intermediate.dense."],
  [/^mlp\.fc2\./, "output.dense."],
];

/** The canonical name of a checkpoint key; keys of no known layout come back without their prefix. */
export function canonical_key(key: string): string {
  const bare = key.replace(PREFIXES, "");
  const layer = V5_LAYER.exec(bare);
  if (layer === null) return bare;
  const [, index, rest] = layer as unknown as [string, string, string];
  const renamed = V5_NAMES.reduce((name, [pattern, to]) => name.replace(pattern, to), rest);
  return `encoder.layer.${index}.${renamed}`;
}

/** The key that a classifier's checkpoint gives a parameter (transformers v4): backbone parameters live under "vit.". */
export function classifier_checkpoint_key(key: string): string {
  return key.startsWith("classifier.") ? key : `vit.${key}`;
}
