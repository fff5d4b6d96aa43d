import { type Engine, type Grid, type LinearHandle, Scope, type TensorHandle } from "../engine/engine.ts";
import type { Turn } from "../engine/forward_queue.ts";
import { Pacer } from "../engine/pacer.ts";
import { until_aborted, VitMsnError } from "../errors.ts";
import { on_demand } from "../on_demand.ts";
import { check_option, check_options, flag } from "../options.ts";
import { Tensor } from "../tensor.ts";
import { backbone_modules, classifier_module, type ModuleSpec } from "./architecture.ts";
import { classifier_checkpoint_key } from "./checkpoint_keys.ts";
import type { ViTMSNConfig } from "./configuration_vit_msn.ts";
import {
  type CheckedPixels,
  check_mask,
  check_pixel_values,
  check_visible_patches,
  type ForwardInputs,
  inputs_for,
  LABEL_RULES,
  pixels_on,
} from "./inputs.ts";
import type { Labels } from "./losses.ts";
import type { BaseModelOutput, ImageClassifierOutput, ModelOutput } from "./outputs.ts";
import { PreTrainedModel } from "./pretrained.ts";
import type { Weights } from "./weights.ts";

/** Tensors that a forward pass collects for its output, still on the engine. */
interface Collected {
  hidden_states: TensorHandle[] | undefined;
  attentions: TensorHandle[] | undefined;
}

/** What differentiation needs besides the engine that runs the forward pass's ops. */
export interface Recorder extends Engine {
  /** The number of layers whose activations are recomputed together for the gradient; 0: all activations are stored. */
  readonly layers_per_checkpoint: number;
  /** Runs layers on `hidden`. They may run again, with a new scope. */
  checkpoint(
    hidden: TensorHandle,
    layers: (hidden: TensorHandle, scope?: Scope) => Promise<TensorHandle>,
  ): Promise<TensorHandle>;
}

/** One forward pass of the backbone. Each method mirrors a class of transformers' modeling_vit_msn.py. */
class Forward {
  readonly #engine: Engine;
  /** Records layers that run again for the gradient. */
  readonly #checkpoints: Recorder | undefined;
  readonly #weights: Weights;
  readonly #config: ViTMSNConfig;
  readonly #eager: boolean;
  readonly #signal: AbortSignal | undefined;
  readonly #turn: Turn | undefined;
  #pacer: Pacer | undefined;
  #scope: Scope;
  readonly collected: Collected;

  constructor(
    model: PreTrainedModel<never, unknown>,
    inputs: ForwardInputs,
    { recorder, turn }: { recorder?: Recorder | undefined; turn?: Turn | undefined },
  ) {
    const { weights, config } = model;
    this.#engine = recorder ?? model.engine;
    this.#checkpoints = recorder?.layers_per_checkpoint ? recorder : undefined;
    this.#weights = weights;
    this.#config = config;
    this.#signal = inputs.signal;
    this.#turn = turn;
    this.#scope = new Scope(this.#engine);
    this.collected = {
      hidden_states: (inputs.output_hidden_states ?? config.output_hidden_states) ? [] : undefined,
      attentions: (inputs.output_attentions ?? config.output_attentions) ? [] : undefined,
    };
    this.#eager = model.attn_implementation === "eager";
  }

  /** Frees the handle when this forward pass ends. */
  get scope(): Scope {
    return this.#scope;
  }

  /** ViTMSNModel.forward up to last_hidden_state [B, N, D]. */
  async backbone(inputs: ForwardInputs): Promise<TensorHandle> {
    const hidden = await this.encoder(inputs);
    const last = this.#layer_norm(hidden, "layernorm");
    this.#retire(hidden);
    return last;
  }

  /**
   * The CLS token after the final layernorm, [B, D]. After the last block's attention, which reads all tokens, only the
   * CLS token is computed.
   */
  async cls(inputs: ForwardInputs): Promise<TensorHandle> {
    const last = this.#config.num_hidden_layers - 1;
    const hidden = await this.#encoded(inputs, Math.max(0, last));
    const cls = last < 0 ? this.#cls_of(hidden) : this.#layer(hidden, `encoder.layer.${last}`, true);
    const normed = this.#layer_norm(cls, "layernorm");
    this.scope.free(cls);
    return normed;
  }

  /** The last block's output [B, N, D], before the final layernorm. */
  encoder(inputs: ForwardInputs): Promise<TensorHandle> {
    return this.#encoded(inputs, this.#config.num_hidden_layers);
  }

  /** The output of the first `count` blocks [B, N, D]. */
  async #encoded(inputs: ForwardInputs, count: number): Promise<TensorHandle> {
    const pacer = new Pacer(inputs.signal, "forward");
    this.#pacer = pacer;
    const stretch = this.#checkpoints?.layers_per_checkpoint ?? Math.max(1, count);
    let hidden = this.#embeddings(inputs);
    for (let first = 0; first < count; first += stretch) {
      const last = Math.min(first + stretch, count);
      const layers = (hidden: TensorHandle, scope?: Scope) => this.#layers(hidden, first, last, pacer, scope);
      hidden = await (this.#checkpoints?.checkpoint(hidden, layers) ?? layers(hidden));
    }
    await pacer.step(this.#engine.caught_up(hidden));
    return hidden;
  }

  /** ViTMSNEmbeddings: patches, mask token, CLS token and positions. */
  #embeddings(inputs: ForwardInputs): TensorHandle {
    const engine = this.#engine;
    const pixels = check_pixel_values(
      inputs.pixel_values,
      this.#config,
      inputs.interpolate_pos_encoding ?? false,
    );
    const masked = this.#masked(inputs, pixels);
    const { handle: pixel_values, is_own } = pixels_on(engine, pixels);
    if (is_own) this.scope.use(pixel_values);
    const projection = this.#weights.linear("embeddings.patch_embeddings.projection");
    const patches = this.scope.use(engine.patch_embed(pixel_values, projection, this.#config.patch_grid));
    this.scope.free(pixel_values);
    const cls_token = this.#weights.tensor("embeddings.cls_token");
    const positions = this.#positions(pixels.grid);
    const hidden = this.scope.use(engine.embed_tokens(patches, cls_token, positions, masked));
    this.scope.free(patches);
    this.scope.free(positions);
    return this.#collect_hidden(this.#visible(hidden, inputs, pixels));
  }

  /** Drops the patches that aren't visible, as MSN's encoder does in pre-training. */
  #visible(hidden: TensorHandle, { visible_patches }: ForwardInputs, { dims, grid }: CheckedPixels) {
    if (visible_patches === undefined) return hidden;
    const { patches, num_visible } = check_visible_patches(
      visible_patches,
      dims[0],
      grid.height * grid.width,
    );
    const visible = this.scope.use(this.#engine.take_tokens(hidden, patches, num_visible));
    this.scope.free(hidden);
    return visible;
  }

  /** The position encodings for a grid of patches: the model's own, or interpolated. */
  #positions(grid: Grid): TensorHandle {
    const positions = this.#weights.tensor("embeddings.position_embeddings");
    const own = this.#config.patches;
    if (grid.height === own.height && grid.width === own.width) return positions;
    return this.scope.use(this.#engine.interpolate_positions(positions, own, grid));
  }

  #masked(inputs: ForwardInputs, pixels: CheckedPixels) {
    if (inputs.bool_masked_pos === undefined) return undefined;
    if (!this.#weights.has("embeddings.mask_token")) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        "bool_masked_pos needs a mask token, and this checkpoint has none (embeddings.mask_token); " +
          "omit bool_masked_pos, or load a checkpoint that was made with use_mask_token.",
        { details: { argument: "bool_masked_pos" } },
      );
    }
    const { dims, grid } = pixels;
    const mask = check_mask(inputs.bool_masked_pos, dims[0], grid.height * grid.width);
    return { mask, mask_token: this.#weights.tensor("embeddings.mask_token") };
  }

  /** Layers [first, last) one after another. */
  async #layers(hidden: TensorHandle, first: number, last: number, pacer: Pacer, scope = this.#scope) {
    const own = this.#scope;
    this.#scope = scope;
    try {
      for (let i = first; i < last; i++) {
        await pacer.step(this.#engine.caught_up(hidden));
        hidden = this.#layer(hidden, `encoder.layer.${i}`);
      }
      return hidden;
    } finally {
      this.#scope = own;
    }
  }

  /** ViTMSNLayer: pre-norm attention and MLP, each with its residual; with `only_cls`, for the CLS token alone. */
  #layer(hidden: TensorHandle, name: string, only_cls = false): TensorHandle {
    const attended = this.#attention(hidden, name, only_cls);
    this.#retire(hidden);
    const output = this.#mlp(attended, name);
    this.scope.free(attended);
    return only_cls ? output : this.#collect_hidden(output);
  }

  #attention(hidden: TensorHandle, name: string, only_cls: boolean): TensorHandle {
    const normed = this.#layer_norm(hidden, `${name}.layernorm_before`, `${name}.attention.qkv`);
    const qkv = this.#linear(normed, `${name}.attention.qkv`);
    this.scope.free(normed);
    const dense = this.#weights.linear(`${name}.attention.output.dense`);
    const all = this.#self_attention(qkv, only_cls ? undefined : dense);
    this.scope.free(qkv);
    const [context, residual] = only_cls ? [this.#cls_of(all), this.#cls_of(hidden)] : [all, hidden];
    const output = this.scope.use(this.#engine.linear(context, dense, "identity", residual));
    for (const handle of only_cls ? [all, context, residual] : [context]) this.scope.free(handle);
    return output;
  }

  /** [B, N, D] -> [B, D]. */
  #cls_of(hidden: TensorHandle): TensorHandle {
    return this.scope.use(this.#engine.pool(hidden, "cls"));
  }

  /** @param reader the only layer that reads the result, if there is one. */
  #self_attention(qkv: TensorHandle, reader: LinearHandle | undefined): TensorHandle {
    const { num_attention_heads } = this.#config;
    const { attentions } = this.collected;
    if (!this.#eager && attentions === undefined) {
      return this.scope.use(this.#engine.scaled_dot_product_attention(qkv, num_attention_heads, reader));
    }
    const { context, probs } = this.#engine.eager_attention(qkv, num_attention_heads);
    this.scope.use(probs);
    if (attentions) attentions.push(probs);
    else this.scope.free(probs);
    return this.scope.use(context);
  }

  #mlp(hidden: TensorHandle, name: string): TensorHandle {
    const up = this.#weights.linear(`${name}.intermediate.dense`);
    const dense = this.#weights.linear(`${name}.output.dense`);
    const normed = this.#layer_norm(hidden, `${name}.layernorm_after`, `${name}.intermediate.dense`);
    const { activation } = this.#config;
    const inner = this.scope.use(this.#engine.linear(normed, up, activation, undefined, dense));
    this.scope.free(normed);
    const output = this.scope.use(this.#engine.linear(inner, dense, "identity", hidden));
    this.scope.free(inner);
    return output;
  }

  #linear(x: TensorHandle, name: string) {
    return this.scope.use(this.#engine.linear(x, this.#weights.linear(name), "identity"));
  }

  /** @param reader the only linear layer that reads the result, if there is one. */
  #layer_norm(x: TensorHandle, name: string, reader?: string): TensorHandle {
    const weight = this.#weights.tensor(`${name}.weight`);
    const bias = this.#weights.tensor(`${name}.bias`);
    const layer = reader === undefined ? undefined : this.#weights.linear(reader);
    return this.scope.use(this.#engine.layer_norm(x, weight, bias, this.#config.layer_norm_eps, layer));
  }

  #collect_hidden(hidden: TensorHandle): TensorHandle {
    this.collected.hidden_states?.push(hidden);
    return hidden;
  }

  /** Frees a hidden state that no output needs. */
  #retire(hidden: TensorHandle): void {
    if (!this.collected.hidden_states?.includes(hidden)) this.scope.free(hidden);
  }

  /** Resolves when all steps are done; rejects with the error of a step that wasn't awaited. */
  async finish(): Promise<void> {
    await this.#pacer?.finish();
  }

  /** Copies a tensor out of the engine. Request all outputs at once, so that the next forward pass may start. */
  async read(handle: TensorHandle): Promise<Tensor<"float32">> {
    const dims = this.#engine.dims(handle);
    const reading = this.#engine.read(handle);
    queueMicrotask(() => this.#turn?.recorded());
    const data = await until_aborted(reading, this.#signal, "forward");
    return new Tensor("float32", data, dims);
  }

  /** The optional outputs, next to the main one. */
  async read_collected(): Promise<ModelOutput> {
    const { hidden_states, attentions } = this.collected;
    const read_all = (handles: TensorHandle[] | undefined) =>
      handles && Promise.all(handles.map((handle) => this.read(handle)));
    const [states, maps] = await Promise.all([read_all(hidden_states), read_all(attentions)]);
    return { ...(states && { hidden_states: states }), ...(maps && { attentions: maps }) };
  }
}

/** Splits the inputs if the device can't hold the activations of all at once. */
async function batches_of<I extends ForwardInputs>(model: PreTrainedModel<never, unknown>, inputs: I) {
  if (model.engine.max_tensor_bytes === undefined) return undefined;
  return (await batching()).by_batches(model, inputs);
}

function batching() {
  return on_demand("batches", () => import("./batches.ts"));
}

/** Runs `body` in a forward pass whose tensors are freed however it ends, when earlier forward passes are done. */
async function run<T>(
  model: PreTrainedModel<never, unknown>,
  inputs: ForwardInputs,
  body: (forward: Forward, inputs: ForwardInputs) => Promise<T>,
): Promise<T> {
  const { engine } = model;
  const here = await inputs_for(engine, inputs);
  const turn = await engine.forward_queue?.take(inputs.signal);
  try {
    return await run_now(new Forward(model, here, { turn }), (forward) => body(forward, here));
  } finally {
    turn?.end();
  }
}

async function run_now<T>(forward: Forward, body: (forward: Forward) => Promise<T>): Promise<T> {
  try {
    const result = await body(forward);
    await forward.finish();
    return result;
  } finally {
    forward.scope.close();
  }
}

/**
 * The ViT-MSN backbone: images to hidden states.
 *
 * Reference: transformers' ViTMSNModel; Assran et al., "Masked Siamese Networks for Label-Efficient Learning" (2022).
 */
export class ViTMSNModel extends PreTrainedModel<ForwardInputs, BaseModelOutput> {
  /** A literal, since minifiers rename classes. */
  static override readonly name: string = "ViTMSNModel";
  static override readonly architecture = "ViTMSNModel";

  static override modules(config: ViTMSNConfig, use_mask_token: boolean): ModuleSpec[] {
    return backbone_modules(config, use_mask_token);
  }

  /**
   * @returns last_hidden_state [batch, 1 + num_patches, hidden_size] after the final layernorm, and the requested
   *   outputs.
   * @throws VitMsnError INVALID_ARGUMENT, DISPOSED, ABORTED, OUT_OF_MEMORY or ENGINE_DEAD.
   */
  override async forward(inputs: ForwardInputs): Promise<BaseModelOutput> {
    await this.ready(inputs ?? null);
    const batches = await batches_of(this, inputs);
    if (batches) return batches.join_outputs((batch) => this.forward(batch));
    return run(this, inputs, async (forward, inputs) => {
      const last = await forward.backbone(inputs);
      const [last_hidden_state, collected] = await Promise.all([
        forward.read(last),
        forward.read_collected(),
      ]);
      return { last_hidden_state, ...collected };
    });
  }

  /**
   * One embedding per image, [batch, hidden_size].
   * @param pool "cls" (default): the CLS token, which MSN trains; "mean": the mean of the patch tokens; "cls_mean": both,
   *   one after the other, [batch, 2 · hidden_size].
   * @param options `before_norm`: use the last block's output without the final layernorm, as in MSN's low-shot
   *   evaluation; default false.
   */
  async get_image_features(
    inputs: ForwardInputs,
    pool: "cls" | "mean" | "cls_mean" = "cls",
    options: { before_norm?: boolean } = {},
  ): Promise<Tensor<"float32">> {
    check_options("get_image_features", options, { before_norm: flag });
    check_option("get_image_features", "pool", pool, { pool: ["cls", "mean", "cls_mean"] });
    const { before_norm = false } = options;
    const { engine } = await this.ready(inputs ?? null);
    const batches = await batches_of(this, inputs);
    if (batches)
      return batches.join_tensors((batch) => this.get_image_features(batch, pool, { before_norm }));
    return run(this, inputs, async (forward, inputs) => {
      const { scope } = forward;
      const hidden = scope.use(await (before_norm ? forward.encoder(inputs) : forward.backbone(inputs)));
      const pooled = (kind: "cls" | "mean") => forward.read(scope.use(engine.pool(hidden, kind)));
      if (pool !== "cls_mean") return pooled(pool);
      const parts = await Promise.all([pooled("cls"), pooled("mean")]);
      return (await batching()).side_by_side(parts);
    });
  }

  /** @internal The same model with other weights on the same engine; it is disposed with this model. */
  with_weights(weights: Weights): ViTMSNModel {
    const { config, engine, device, engine_info, dtype, attn_implementation } = this;
    return new ViTMSNModel(config, engine, weights, { device, engine_info, dtype, attn_implementation });
  }

  /**
   * @internal Computes the CLS token after the final layernorm, [batch, hidden_size], and passes it to `body` before
   * anything is freed, so that a head can use it and, on a recorder, be differentiated with it.
   */
  async with_cls<T>(
    inputs: ForwardInputs,
    body: (cls: TensorHandle) => Promise<T>,
    recorder?: Recorder,
  ): Promise<T> {
    const { engine: own } = await this.ready(inputs, LABEL_RULES);
    const engine = recorder ?? own;
    const here = await inputs_for(engine, inputs);
    return run_now(new Forward(this, here, { recorder }), async (forward) => body(await forward.cls(here)));
  }
}

/** Like compute_loss, whose code is loaded only if there are labels. */
async function loss_of(
  ...args: Parameters<typeof import("./losses.ts").compute_loss>
): Promise<TensorHandle> {
  const { compute_loss } = await on_demand("losses", () => import("./losses.ts"));
  return compute_loss(...args);
}

/** The arguments of ViTMSNForImageClassification's forward. */
export interface ClassificationInputs extends ForwardInputs {
  /** Class indices or targets; if given, the loss is computed. */
  labels?: Labels;
}

/**
 * The backbone with a linear classifier on the CLS token.
 *
 * Reference: transformers' ViTMSNForImageClassification.
 */
export class ViTMSNForImageClassification extends PreTrainedModel<
  ClassificationInputs,
  ImageClassifierOutput
> {
  /** A literal, since minifiers rename classes. */
  static override readonly name: string = "ViTMSNForImageClassification";
  static override readonly architecture = "ViTMSNForImageClassification";

  static override modules(config: ViTMSNConfig, use_mask_token: boolean): ModuleSpec[] {
    return [...backbone_modules(config, use_mask_token), classifier_module(config)];
  }

  static override readonly head_keys: readonly string[] = ["classifier.weight", "classifier.bias"];
  #vit: ViTMSNModel | undefined;

  static override checkpoint_key(key: string): string {
    return classifier_checkpoint_key(key);
  }

  /**
   * The backbone, like the reference's attribute of that name. It has no memory of its own: it runs on this model's
   * engine and weights, and dispose() of either frees both.
   */
  get vit(): ViTMSNModel {
    this.#vit ??= this.make_part(ViTMSNModel);
    return this.#vit;
  }

  /**
   * @returns logits [batch, num_labels], the loss if labels were given, and the requested outputs.
   * @throws VitMsnError INVALID_ARGUMENT, DISPOSED, ABORTED, OUT_OF_MEMORY or ENGINE_DEAD.
   */
  override async forward(inputs: ClassificationInputs): Promise<ImageClassifierOutput> {
    const { engine, config } = await this.ready(inputs ?? null, LABEL_RULES);
    const { labels, ...rest } = inputs;
    const batches = await batches_of(this, rest);
    if (batches) {
      const output = await batches.join_outputs((batch) => this.forward(batch));
      return labels ? { loss: await this.#loss(output.logits, labels), ...output } : output;
    }
    return run(this, rest, async (forward, inputs) => {
      const logits = await this.#logits(forward, inputs, engine);
      const loss = labels && (await loss_of(engine, forward.scope, logits, labels, config));
      // All at once, so that a GPU's results are awaited only once.
      const [loss_read, logits_read, collected] = await Promise.all([
        loss && forward.read(loss),
        forward.read(logits),
        forward.read_collected(),
      ]);
      return { ...(loss_read && { loss: loss_read }), logits: logits_read, ...collected };
    });
  }

  /**
   * @internal Computes the logits and passes them to `body` before anything is freed, so that a loss can be computed
   *   from
   * them and, on a recorder, differentiated.
   */
  async with_logits<T>(
    inputs: ForwardInputs,
    body: (logits: TensorHandle, scope: Scope) => Promise<T>,
    recorder?: Recorder,
  ): Promise<T> {
    const { engine: own } = await this.ready(inputs, LABEL_RULES);
    const engine = recorder ?? own;
    const here = await inputs_for(engine, inputs);
    // Not queued: the body may run other forward passes.
    return run_now(new Forward(this, here, { recorder }), async (forward) =>
      body(await this.#logits(forward, here, engine), forward.scope),
    );
  }

  /** The loss of logits that were computed in batches. */
  async #loss({ data, dims }: Tensor<"float32">, labels: Labels): Promise<Tensor<"float32">> {
    const { engine, config } = this;
    const scope = new Scope(engine);
    try {
      const logits = scope.use(engine.tensor(data, dims));
      const loss = await loss_of(engine, scope, logits, labels, config);
      return new Tensor("float32", await engine.read(loss), engine.dims(loss));
    } finally {
      scope.close();
    }
  }

  async #logits(forward: Forward, inputs: ForwardInputs, engine: Engine): Promise<TensorHandle> {
    const { scope } = forward;
    const last_hidden_state = scope.use(await forward.backbone(inputs));
    const cls = scope.use(engine.pool(last_hidden_state, "cls"));
    return scope.use(engine.linear(cls, this.weights.linear("classifier"), "identity"));
  }
}
