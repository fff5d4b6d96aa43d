import { env, ViTImageProcessor, ViTMSNModel, VitMsnError } from "vit-msn";
import type { MSNPretrainer, MSNStepEvent } from "vit-msn/training";
import type { Call } from "./calls.ts";
import { source_of } from "./loading.ts";
import { memory_directory, type WrittenFiles } from "./memory_directory.ts";
import type { PretrainingProgress, PretrainingResult, PretrainingSettings } from "./types.ts";

/** The folder of the origin's private file system that checkpoints go to; they outlast the page. */
const FOLDER = "vit-msn-studio-pretraining";

/** Encoders to begin with: [pixels, patch, width, layers, heads]. */
const FRESH = {
  tiny: [28, 4, 64, 3, 2],
  small: [32, 4, 128, 6, 4],
  medium: [64, 8, 192, 8, 6],
} as const;
export type FreshEncoder = keyof typeof FRESH;

/** One run of self-supervised learning by MSN, and what it has made. */
export class Pretraining {
  #pretrainer: MSNPretrainer | undefined;
  #is_running = false;

  /** Trains until the run's end, stop() or an abort; with `resume` it starts from the stored checkpoint. */
  async train(
    images: readonly Blob[],
    settings: PretrainingSettings,
    resume: boolean,
    { signal, progress }: Call,
  ): Promise<PretrainingResult> {
    const { MSNPretrainer } = await import("vit-msn/training");
    // A collapse, skipped images, unavailable threads.
    env.warn = (message) => progress({ kind: "warning", message } satisfies PretrainingProgress);
    if (!resume) await this.discard();
    await this.#forget();
    const { model, image_processor } = await start_model(settings, signal);
    const batch = Math.min(settings.batch_size, images.length);
    const folder = await checkpoints();
    if (folder === undefined) {
      const message = "This browser stores no files for this page: the run can be stopped, but not resumed.";
      progress({ kind: "warning", message } satisfies PretrainingProgress);
    }
    const pretrainer = new MSNPretrainer({
      model,
      ...(image_processor && { image_processor }),
      train_dataset: images.map((image) => ({ image })),
      unreadable_images: "skip",
      args: {
        ...(folder && {
          output_dir: folder,
          save_strategy: "steps",
          save_steps: settings.save_steps,
          save_total_limit: 1,
        }),
        num_train_epochs: settings.epochs,
        per_device_train_batch_size: batch,
        focal_views: settings.focal_views,
        patch_drop: settings.patch_drop,
        learning_rate: settings.learning_rate,
        num_proto: settings.num_proto,
        hidden_dim: settings.hidden_dim,
        output_dim: settings.output_dim,
      },
      callbacks: [
        {
          on_step_end: (event) => progress({ kind: "step", ...step_of(event) } satisfies PretrainingProgress),
        },
      ],
    });
    this.#pretrainer = pretrainer;
    this.#is_running = true;
    try {
      const { global_step } = await pretrainer.train({ resume_from_checkpoint: resume, signal });
      return { step: global_step, max_steps: pretrainer.state.max_steps };
    } finally {
      this.#is_running = false;
    }
  }

  /** Ends the run after this step, with a checkpoint to resume from where files can be stored. */
  stop(): void {
    if (this.#pretrainer === undefined || !this.#is_running) return;
    const { args, control } = this.#pretrainer;
    control.should_save = args.output_dir !== undefined;
    control.should_training_stop = true;
  }

  /** The target encoder's files, as from_pretrained and transformers open them. */
  async files(): Promise<WrittenFiles> {
    if (this.#pretrainer === undefined)
      throw new VitMsnError("INVALID_ARGUMENT", "Nothing was pre-trained yet: start a run first.");
    const files: WrittenFiles = new Map();
    await this.#pretrainer.save_model(memory_directory(files));
    return files;
  }

  /** The step of the checkpoint that is stored on this device; undefined where there is none. */
  async stored_step(): Promise<number | undefined> {
    const steps: number[] = [];
    for await (const name of (await checkpoints())?.keys() ?? []) {
      const step = /^checkpoint-(\d+)$/.exec(name)?.[1];
      if (step !== undefined) steps.push(Number(step));
    }
    return steps.length > 0 ? Math.max(...steps) : undefined;
  }

  async discard(): Promise<void> {
    const root = await private_files();
    await root?.removeEntry(FOLDER, { recursive: true }).catch((error: unknown) => {
      if (!(error instanceof DOMException) || error.name !== "NotFoundError") throw error;
    });
  }

  /** Frees the run before. */
  async #forget(): Promise<void> {
    const before = this.#pretrainer;
    this.#pretrainer = undefined;
    await before?.dispose();
    await before?.model.dispose();
  }
}

/** The origin's private file system: pages that aren't served by https have none, nor have some private windows. */
async function private_files(): Promise<FileSystemDirectoryHandle | undefined> {
  return navigator.storage?.getDirectory().catch(() => undefined);
}

async function checkpoints(): Promise<FileSystemDirectoryHandle | undefined> {
  return (await private_files())?.getDirectoryHandle(FOLDER, { create: true });
}

/** A fresh encoder, or the backbone of a model that has learned before. */
async function start_model(
  { start, device, num_threads }: PretrainingSettings,
  signal: AbortSignal,
): Promise<{ model: ViTMSNModel; image_processor?: ViTImageProcessor }> {
  const options = { device, num_threads };
  if (typeof start === "object") {
    const source = source_of(start);
    const image_processor = await ViTImageProcessor.from_pretrained(source, { signal });
    return { model: await ViTMSNModel.from_pretrained(source, { ...options, signal }), image_processor };
  }
  const { msn_encoder } = await import("vit-msn/training");
  const [image_size, patch_size, hidden_size, num_hidden_layers, num_attention_heads] = FRESH[start];
  const config = {
    image_size,
    patch_size,
    hidden_size,
    num_hidden_layers,
    num_attention_heads,
    intermediate_size: 4 * hidden_size,
  };
  return { model: await msn_encoder(config, options) };
}

function step_of(event: MSNStepEvent) {
  const { state, loss, prototypes_used, mean_entropy, learning_rate, eta_seconds, step_seconds, args } =
    event;
  const { global_step: step, max_steps, epoch } = state;
  const images_per_second = args.per_device_train_batch_size / step_seconds;
  return {
    step,
    max_steps,
    epoch,
    loss,
    prototypes_used,
    mean_entropy,
    learning_rate,
    eta_seconds,
    images_per_second,
  };
}
