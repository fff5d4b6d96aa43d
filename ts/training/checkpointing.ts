/**
 * Activations that a layer stores for its gradient, in units of a hidden state's size: about the input of
 * each linear layer and norm, queries, keys and values, and the MLP's hidden layer twice.
 */
const STORED_PER_LAYER = 16;

/**
 * How many layers to recompute at a time under gradient checkpointing. With L layers in segments of k, L/k
 * inputs are stored, and k layers' activations during a segment's backward: minimal for k = √(L / 16), where
 * the memory grows with √L.
 */
export function layers_per_checkpoint(num_hidden_layers: number): number {
  return Math.max(1, Math.round(Math.sqrt(num_hidden_layers / STORED_PER_LAYER)));
}
