/**
 * Activations that a layer keeps for its gradient, in tensors of a hidden state's size: about the input of each linear layer
 * and norm, queries, keys and values, and the MLP's hidden layer twice.
 */
const KEPT_BY_A_LAYER = 16;

/**
 * How many layers to compute again at a time, where activations aren't kept. With L layers in stretches of k, L/k inputs are
 * kept and k layers' activations while a stretch goes back: least for k = √(L / 16), and then it grows with √L.
 */
export function layers_per_checkpoint(num_hidden_layers: number): number {
  return Math.max(1, Math.round(Math.sqrt(num_hidden_layers / KEPT_BY_A_LAYER)));
}
