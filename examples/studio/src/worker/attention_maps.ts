/**
 * How much the CLS token looks at each patch, by layer and head: row 0 of each head's probabilities, without CLS itself.
 * @param attentions for each layer probabilities [1, heads, tokens, tokens], row-major.
 * @returns [layers, heads, tokens - 1]
 */
export function cls_attention(
  attentions: readonly Float32Array[],
  heads: number,
  tokens: number,
): Float32Array {
  const patches = tokens - 1;
  const maps = new Float32Array(attentions.length * heads * patches);
  attentions.forEach((probs, layer) => {
    for (let head = 0; head < heads; head++) {
      const row = head * tokens * tokens;
      maps.set(probs.subarray(row + 1, row + tokens), (layer * heads + head) * patches);
    }
  });
  return maps;
}

/**
 * Attention rollout (Abnar & Zuidema, "Quantifying Attention Flow in Transformers", 2020), the CLS token's row: the product
 * of the layers' (A + I) / 2, A being the mean over heads. Computed as a row times matrices, from the given layer down, which
 * takes tokens² a layer instead of tokens³.
 * @returns [layers, tokens - 1]: row l is the rollout through layers 0 to l, without CLS' share of itself.
 */
export function attention_rollout(
  attentions: readonly Float32Array[],
  heads: number,
  tokens: number,
): Float32Array {
  const means = attentions.map((probs) => mean_over_heads(probs, heads, tokens));
  const maps = new Float32Array(attentions.length * (tokens - 1));
  for (let last = 0; last < means.length; last++) {
    let row = new Float32Array(tokens);
    row[0] = 1;
    for (let layer = last; layer >= 0; layer--) row = through_layer(row, means[layer] as Float32Array);
    maps.set(row.subarray(1), last * (tokens - 1));
  }
  return maps;
}

function mean_over_heads(probs: Float32Array, heads: number, tokens: number): Float32Array {
  const size = tokens * tokens;
  const mean = new Float32Array(size);
  for (let head = 0; head < heads; head++) {
    const offset = head * size;
    for (let i = 0; i < size; i++) mean[i] = (mean[i] as number) + (probs[offset + i] as number) / heads;
  }
  return mean;
}

/** row · (A + I) / 2 */
function through_layer(row: Float32Array<ArrayBuffer>, mean: Float32Array): Float32Array<ArrayBuffer> {
  const tokens = row.length;
  const next = row.map((value) => value / 2);
  for (let i = 0; i < tokens; i++) {
    const half = (row[i] as number) / 2;
    if (half === 0) continue;
    const offset = i * tokens;
    for (let j = 0; j < tokens; j++) next[j] = (next[j] as number) + half * (mean[offset + j] as number);
  }
  return next;
}
