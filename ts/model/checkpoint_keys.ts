/**
 * Maps checkpoint keys of every known layout to the hub's (transformers v4) without the "vit." prefix.
 *
 * - the hub's backbones: `encoder.layer.0.attention.attention.query.weight`
 * - v4 classifiers: the same under `vit.`
 * - transformers v5 in memory: `vit.layers.0.attention.q_proj.weight`, `vit.layers.0.mlp.fc1.weight`
 * - v5's default save of a classifier: `vit.embeddings.*` next to bare `encoder.layer.*`
 * - any of these wrapped by DataParallel, Lightning, torch.compile, FSDP or DeepSpeed: `module._orig_mod.vit.…`,
 * `model.vit.…`
 * - MSN's original checkpoints: `module.blocks.0.attn.qkv.weight`, and the projection head under `module.fc.`
 *
 * Source: transformers' conversion_mapping.py, entry "ViTModel", and convert_msn_to_pytorch.py.
 */
const PREFIXES = /^(?:vit\.|vit_msn\.)?/;
/** The outermost prefixes of training frameworks: DataParallel, Lightning. */
const WRAPPERS = /^(?:(?:module|model)\.)+/;
/** Prefixes inside keys: torch.compile, FSDP, DeepSpeed. */
const INNER_WRAPPERS = /(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\./g;
const V5_LAYER = /^layers\.(\d+)\.(.+)$/;
const V5_NAMES: readonly [RegExp, string][] = [
  [/^attention\.q_proj\./, "attention.attention.query."],
  [/^attention\.k_proj\./, "attention.attention.key."],
  [/^attention\.v_proj\./, "attention.attention.value."],
  [/^attention\.o_proj\./, "attention.output.dense."],
  [/^mlp\.fc1\./, "intermediate.dense."],
  [/^mlp\.fc2\./, "output.dense."],
];

const ORIGINAL_BLOCK = /^blocks\.(\d+)\.(.+)$/;
const ORIGINAL_NAMES: readonly [RegExp, string][] = [
  [/^norm1\./, "layernorm_before."],
  [/^norm2\./, "layernorm_after."],
  [/^attn\.proj\./, "attention.output.dense."],
  [/^mlp\.fc1\./, "intermediate.dense."],
  [/^mlp\.fc2\./, "output.dense."],
];
const ORIGINAL_ROOTS: readonly [RegExp, string][] = [
  [/^cls_token$/, "embeddings.cls_token"],
  [/^pos_embed$/, "embeddings.position_embeddings"],
  [/^patch_embed\.proj\./, "embeddings.patch_embeddings.projection."],
  [/^norm\./, "layernorm."],
  [/^fc\./, "head."],
];
/** MSN's original checkpoints store query, key and value as one tensor. */
const FUSED = /^(blocks\.\d+\.)attn\.qkv\.(weight|bias)$/;

/** A checkpoint key without the prefixes of training frameworks. */
export function unwrapped_key(key: string): string {
  return key.replace(INNER_WRAPPERS, "").replace(WRAPPERS, "");
}

/** The keys of query, key and value if `key` is a fused tensor of MSN's original checkpoints; else undefined. */
export function fused_parts(key: string): string[] | undefined {
  const [, block, what] = FUSED.exec(unwrapped_key(key)) ?? [];
  if (block === undefined) return undefined;
  const layer = block.replace("blocks.", "encoder.layer.");
  return ["query", "key", "value"].map((part) => `${layer}attention.attention.${part}.${what}`);
}

/** The canonical name of a checkpoint key. Keys of unknown layouts only lose their prefix. */
export function canonical_key(key: string): string {
  const bare = unwrapped_key(key).replace(PREFIXES, "");
  const block = ORIGINAL_BLOCK.exec(bare);
  if (block !== null) return `encoder.layer.${block[1]}.${renamed(block[2] as string, ORIGINAL_NAMES)}`;
  const root = renamed(bare, ORIGINAL_ROOTS);
  if (root !== bare) return root;
  const layer = V5_LAYER.exec(bare);
  if (layer === null) return bare;
  const [, index, rest] = layer as unknown as [string, string, string];
  return `encoder.layer.${index}.${renamed(rest, V5_NAMES)}`;
}

function renamed(name: string, rules: readonly [RegExp, string][]): string {
  return rules.reduce((name, [pattern, to]) => name.replace(pattern, to), name);
}

/** A parameter's key in a classifier's checkpoint (transformers v4): backbone parameters are under "vit.". */
export function classifier_checkpoint_key(key: string): string {
  return key.startsWith("classifier.") ? key : `vit.${key}`;
}
