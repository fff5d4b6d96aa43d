import {
  type ClassificationResult,
  type Evaluation,
  type FewShotImageClassificationPipeline,
  type FitReport,
  pipeline,
  type ViTImageProcessor,
  type ViTMSNForImageClassification,
} from "vit-msn";
import type { Call } from "./calls.ts";
import { memory_directory, type WrittenFiles } from "./memory_directory.ts";
import type { Done, ImageRef, TaughtState } from "./types.ts";
import { pack, unpack } from "./zip.ts";

/** Classes of the user's own on the model's backbone. */
export class Taught {
  readonly #teach: FewShotImageClassificationPipeline;

  private constructor(teach: FewShotImageClassificationPipeline) {
    this.#teach = teach;
  }

  static async on(model: ViTMSNForImageClassification, image_processor: ViTImageProcessor): Promise<Taught> {
    return new Taught(await pipeline("few-shot-image-classification", model, { image_processor }));
  }

  state(): TaughtState {
    const { labels, examples, is_fitted, needs_fit } = this.#teach;
    const classes = labels.map((label) => ({
      label,
      count: examples.filter((example) => example.label === label).length,
    }));
    return { classes, is_fitted, needs_fit };
  }

  add(label: string, images: readonly ImageRef[], { signal, progress }: Call): Promise<number[]> {
    const blobs = images.map(({ blob }) => blob);
    return this.#teach.add(label, blobs, { signal, progress_callback: progress });
  }

  remove(what: number | string): number {
    return this.#teach.remove(what);
  }

  fit({ signal }: Call): Promise<FitReport> {
    return this.#teach.fit({ signal });
  }

  leave_one_out({ signal, progress }: Call): Promise<Evaluation> {
    const tell = ({ done, total }: Done) => progress({ done, total } satisfies Done);
    return this.#teach.leave_one_out({ signal, progress_callback: tell });
  }

  /** undefined while there is nothing to classify with. */
  async classify(image: ImageRef, { signal }: Call): Promise<ClassificationResult[] | undefined> {
    if (!this.#teach.is_fitted) return undefined;
    return this.#teach(image.blob, { signal, top_k: Number.MAX_SAFE_INTEGER });
  }

  async save({ signal }: Call): Promise<Blob> {
    const files: WrittenFiles = new Map();
    await this.#teach.save(memory_directory(files), { signal });
    return pack(files);
  }

  async load(files: readonly File[], { signal }: Call): Promise<void> {
    await this.#teach.load(await unpack(files), { signal });
  }

  async export_model({ signal }: Call): Promise<Blob> {
    const files: WrittenFiles = new Map();
    await this.#teach.export_model(memory_directory(files), { signal });
    return pack(files);
  }
}
