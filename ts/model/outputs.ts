import type { Tensor } from "../tensor.ts";

/** The optional outputs of every forward. */
export interface ModelOutput {
  /**
   * If requested: num_hidden_layers + 1 tensors [batch, tokens, hidden_size]; the first is the embeddings' output,
   * the last is taken before the final layernorm.
   */
  hidden_states?: Tensor<"float32">[];
  /** If requested: num_hidden_layers tensors [batch, heads, tokens, tokens] of probabilities. */
  attentions?: Tensor<"float32">[];
}

/** ViTMSNModel's output. */
export interface BaseModelOutput extends ModelOutput {
  /** [batch, tokens, hidden_size], after the final layernorm; token 0 is CLS. */
  last_hidden_state: Tensor<"float32">;
}

/** ViTMSNForImageClassification's output. */
export interface ImageClassifierOutput extends ModelOutput {
  /** `[1]`: the mean loss, if labels were given. */
  loss?: Tensor<"float32">;
  /** [batch, num_labels], before softmax or sigmoid. */
  logits: Tensor<"float32">;
}
