import {
  type ClassificationResult,
  type Evaluation,
  type FitReport,
  type FunctionToApply,
  type ViTMSNConfig,
  VitMsnError,
} from "vit-msn";
import { attention_rollout, cls_attention } from "./attention_maps.ts";
import type { Call } from "./calls.ts";
import { type LoadedModel, load_model } from "./loading.ts";
import { as_colours, principal_components } from "./pca.ts";
import { type PreparedImage, Preparer } from "./prepared.ts";
import { Pretraining } from "./pretraining.ts";
import { Taught } from "./taught.ts";
import type {
  AttentionMaps,
  Classified,
  Done,
  ImageRef,
  ModelInfo,
  Neighbour,
  PcaImage,
  PcaResult,
  PretrainingResult,
  PretrainingSettings,
  ProfileResult,
  Settings,
  TaughtState,
} from "./types.ts";
import { pack } from "./zip.ts";

/** The most bytes of attention probabilities that are read at once. */
const MAX_ATTENTION_BYTES = 1 << 30;

/** A loaded model and what goes with it. */
interface Session extends LoadedModel {
  preparer: Preparer;
  taught: Taught;
  /** CLS embeddings of images by id, of length 1. */
  embeddings: Map<number, Float32Array>;
}

/** What the page can ask the Worker for. Calls run one after the other; each can be stopped. */
export class Service {
  #session: Session | undefined;
  readonly #pretraining = new Pretraining();
  #last: Promise<unknown> = Promise.resolve();

  /** Loads a model in place of the one before, which stays where loading fails. */
  load(call: Call, settings: Settings): Promise<ModelInfo> {
    return this.#in_turn(call, async () => {
      const loaded = await load_model(settings, call);
      const { model, processor, info } = loaded;
      const taught = await Taught.on(model, processor);
      await this.#session?.model.dispose();
      const preparer = new Preparer(processor, model.config);
      this.#session = { ...loaded, preparer, taught, embeddings: new Map() };
      return info;
    });
  }

  /** Memory that the engine holds now. */
  async memory(_: Call) {
    return this.#ready().model.memory();
  }

  /** @param visible the patches that the model may see, by index; default all. */
  classify(call: Call, image: ImageRef, visible?: readonly number[]): Promise<Classified> {
    return this.#on_image(call, image, async ({ model }, { inputs, layout }, prepare_ms) => {
      const started = performance.now();
      const { logits } = await model.forward({
        ...inputs,
        signal: call.signal,
        ...(visible && { visible_patches: visible }),
      });
      const ms = performance.now() - started;
      return { scores: scores_of(logits.data, model.config), layout, ms, prepare_ms };
    });
  }

  attention(call: Call, image: ImageRef): Promise<AttentionMaps> {
    return this.#on_image(call, image, async ({ model, info }, { inputs, layout }) => {
      const { layers, heads } = info;
      const tokens = 1 + layout.rows * layout.columns;
      check_attention_size(layers, heads, tokens);
      const started = performance.now();
      const { attentions = [] } = await model.forward({
        ...inputs,
        signal: call.signal,
        output_attentions: true,
      });
      const ms = performance.now() - started;
      const probs = attentions.map(({ data }) => data);
      const cls = cls_attention(probs, heads, tokens);
      return { layers, heads, layout, cls, rollout: attention_rollout(probs, heads, tokens), ms };
    });
  }

  /** Principal components of the patch features of images, taken together, as colours. */
  pca(call: Call, images: readonly ImageRef[]): Promise<PcaResult> {
    return this.#in_turn(call, async () => {
      const started = performance.now();
      const { model, preparer, info } = this.#ready();
      const parts: Float32Array[] = [];
      const layouts: PcaImage["layout"][] = [];
      for (const image of images) {
        const { inputs, layout } = await preparer.prepare(image, call);
        const { last_hidden_state } = await model.vit.forward({ ...inputs, signal: call.signal });
        parts.push(last_hidden_state.data.subarray(info.hidden_size)); // without CLS
        layouts.push(layout);
        call.progress({ done: parts.length, total: images.length } satisfies Done);
      }
      const { scores, explained } = principal_components(joined(parts), info.hidden_size);
      const colours = as_colours(scores);
      let offset = 0;
      const found = images.map(({ id }, i) => {
        const layout = layouts[i] as PcaImage["layout"];
        const length = 3 * layout.rows * layout.columns;
        offset += length;
        return { id, layout, colours: colours.slice(offset - length, offset) };
      });
      return { images: found, explained, ms: performance.now() - started };
    });
  }

  /** Other images by the cosine of their CLS embeddings to this one's, nearest first. */
  nearest(call: Call, image: ImageRef, others: readonly ImageRef[]): Promise<Neighbour[]> {
    return this.#in_turn(call, async () => {
      const own = await this.#embedding(image, call);
      const found: Neighbour[] = [];
      for (const [i, other] of others.entries()) {
        const embedding = await this.#embedding(other, call);
        found.push({
          id: other.id,
          similarity: own.reduce((sum, x, k) => sum + x * (embedding[k] as number), 0),
        });
        call.progress({ done: i + 1, total: others.length } satisfies Done);
      }
      return found.sort((a, b) => b.similarity - a.similarity);
    });
  }

  profile(call: Call, image: ImageRef): Promise<ProfileResult> {
    return this.#on_image(call, image, async ({ model }, { inputs }) => {
      const profile = await model.profile(inputs);
      return {
        device: profile.device,
        wall_ms: profile.wall_ms,
        rows: profile.by_name().map(({ name, calls, ms, flop, bytes }) => ({ name, calls, ms, flop, bytes })),
        table: profile.table(),
        chrome_trace: profile.chrome_trace(),
      };
    });
  }

  teach_add(call: Call, label: string, images: readonly ImageRef[]): Promise<number[]> {
    return this.#in_turn(call, () => this.#ready().taught.add(label, images, call));
  }

  teach_remove(call: Call, what: number | string): Promise<number> {
    return this.#in_turn(call, async () => this.#ready().taught.remove(what));
  }

  teach_fit(call: Call): Promise<FitReport> {
    return this.#in_turn(call, () => this.#ready().taught.fit(call));
  }

  leave_one_out(call: Call): Promise<Evaluation> {
    return this.#in_turn(call, () => this.#ready().taught.leave_one_out(call));
  }

  teach_classify(call: Call, image: ImageRef): Promise<ClassificationResult[] | undefined> {
    return this.#in_turn(call, () => this.#ready().taught.classify(image, call));
  }

  teach_save(call: Call): Promise<Blob> {
    return this.#in_turn(call, () => this.#ready().taught.save(call));
  }

  teach_load(call: Call, files: readonly File[]): Promise<TaughtState> {
    return this.#in_turn(call, async () => {
      const { taught } = this.#ready();
      await taught.load(files, call);
      return taught.state();
    });
  }

  teach_export(call: Call): Promise<Blob> {
    return this.#in_turn(call, () => this.#ready().taught.export_model(call));
  }

  pretrain(
    call: Call,
    images: readonly Blob[],
    settings: PretrainingSettings,
    resume: boolean,
  ): Promise<PretrainingResult> {
    return this.#in_turn(call, () => this.#pretraining.train(images, settings, resume, call));
  }

  /** Not in turn: the run is under way. */
  async pretrain_stop(_: Call): Promise<void> {
    this.#pretraining.stop();
  }

  /** What was pre-trained, as a model's files. */
  pretrain_files(call: Call): Promise<Map<string, Blob>> {
    return this.#in_turn(call, async () => {
      const files = await this.#pretraining.files();
      return new Map([...files].map(([name, bytes]) => [name, new Blob([bytes])]));
    });
  }

  pretrain_export(call: Call): Promise<Blob> {
    return this.#in_turn(call, async () => pack(await this.#pretraining.files()));
  }

  /** The step of the checkpoint that is stored on this device. */
  pretrain_stored_step(call: Call): Promise<number | undefined> {
    return this.#in_turn(call, () => this.#pretraining.stored_step());
  }

  async #embedding(image: ImageRef, call: Call): Promise<Float32Array> {
    const { model, preparer, embeddings } = this.#ready();
    const known = embeddings.get(image.id);
    if (known !== undefined) return known;
    const { inputs } = await preparer.prepare(image, call);
    const { data } = await model.vit.get_image_features({ ...inputs, signal: call.signal });
    const length = Math.hypot(...data);
    const embedding = data.map((x) => x / (length || 1));
    embeddings.set(image.id, embedding);
    return embedding;
  }

  #on_image<T>(
    call: Call,
    image: ImageRef,
    work: (session: Session, prepared: PreparedImage, prepare_ms: number) => Promise<T>,
  ): Promise<T> {
    return this.#in_turn(call, async () => {
      const session = this.#ready();
      const started = performance.now();
      const prepared = await session.preparer.prepare(image, call);
      return work(session, prepared, performance.now() - started);
    });
  }

  /** After all calls before it, and not at all once it was stopped. */
  #in_turn<T>({ signal }: Call, work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(() => {
      if (signal.aborted) throw new VitMsnError("ABORTED", "Stopped before it began.");
      return work();
    });
    this.#last = turn.catch(() => {});
    return turn;
  }

  #ready(): Session {
    if (this.#session !== undefined) return this.#session;
    throw new VitMsnError("DISPOSED", "No model is loaded yet; choose one under Engine.");
  }
}

/** All labels with their scores as the pipeline "image-classification" has them, best first. */
function scores_of(logits: Float32Array, config: ViTMSNConfig): ClassificationResult[] {
  const scores = SCORES[score_function(config)](Array.from(logits));
  const found = scores.map((score, i) => ({ label: config.id2label[i] as string, score }));
  return found.sort((a, b) => b.score - a.score);
}

function score_function({ problem_type, num_labels }: ViTMSNConfig): FunctionToApply {
  if (problem_type === "regression") return "none";
  return problem_type === "multi_label_classification" || num_labels === 1 ? "sigmoid" : "softmax";
}

const SCORES: Record<FunctionToApply, (logits: number[]) => number[]> = {
  none: (logits) => logits,
  sigmoid: (logits) => logits.map((x) => 1 / (1 + Math.exp(-x))),
  softmax: (logits) => {
    const max = Math.max(...logits);
    const exps = logits.map((x) => Math.exp(x - max));
    const sum = exps.reduce((a, b) => a + b, 0);
    return exps.map((x) => x / sum);
  },
};

function check_attention_size(layers: number, heads: number, tokens: number): void {
  const bytes = 4 * layers * heads * tokens * tokens;
  if (bytes <= MAX_ATTENTION_BYTES) return;
  throw new VitMsnError(
    "OUT_OF_MEMORY",
    `The attention of ${layers} layers with ${heads} heads over ${tokens} tokens is ${(bytes / 1e9).toFixed(1)} GB, ` +
      "more than this page reads. Choose a model with larger patches.",
  );
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    all.set(part, offset);
    offset += part.length;
  }
  return all;
}
