import { was_aborted } from "../worker/calls.ts";
import { announce, h } from "./dom.ts";
import { icon } from "./icons.ts";

/** How long work may take before the page shows that it works. */
const PATIENCE_MS = 200;

/** Where a panel shows that it works, how far it is, and what went wrong; and a way to stop. */
export class Task {
  readonly element: HTMLElement;
  readonly #bar: HTMLProgressElement;
  readonly #what: HTMLElement;
  readonly #busy: HTMLElement;
  readonly #error: HTMLElement;
  #controller: AbortController | undefined;

  constructor() {
    this.#what = h("span", { class: "task-what" });
    this.#bar = h("progress", { "aria-label": "Progress" });
    const stop = h(
      "button",
      { type: "button", class: "quiet", onclick: () => this.stop() },
      icon("stop"),
      "Stop",
    );
    this.#busy = h("div", { class: "task-busy", hidden: true }, this.#what, this.#bar, stop);
    this.#error = h("div", { class: "notice error", role: "alert", hidden: true });
    this.element = h("div", { class: "task" }, this.#busy, this.#error);
  }

  get is_running(): boolean {
    return this.#controller !== undefined;
  }

  stop(): void {
    this.#controller?.abort();
  }

  /** Takes a Worker's progress. */
  readonly on_progress = ({ done, total }: { done: number; total: number }): void => {
    this.#bar.max = Math.max(1, total);
    this.#bar.value = done;
  };

  /** Runs the work instead of what ran before. What goes wrong is shown here, so this never rejects. */
  async run(what: string, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    this.stop();
    const controller = new AbortController();
    this.#controller = controller;
    this.#error.hidden = true;
    this.#what.textContent = what;
    this.#bar.removeAttribute("value");
    const timer = setTimeout(() => {
      this.#busy.hidden = false;
      announce(what);
    }, PATIENCE_MS);
    try {
      await work(controller.signal);
    } catch (error) {
      if (!was_aborted(error) && this.#controller === controller) this.fail(error);
    } finally {
      clearTimeout(timer);
      if (this.#controller === controller) {
        this.#controller = undefined;
        this.#busy.hidden = true;
      }
    }
  }

  fail(error: unknown): void {
    this.#error.textContent = sentence_of(error);
    this.#error.hidden = false;
  }

  clear(): void {
    this.stop();
    this.#error.hidden = true;
  }
}

/** What can be done about it, by the package's error codes. */
const ADVICE: Record<string, string> = {
  INVALID_IMAGE: "Choose another picture, for example a PNG or JPEG file.",
  INVALID_CONFIG: "Check the model's config.json and preprocessor_config.json.",
  INVALID_CHECKPOINT: "Download the file again, or choose another one.",
  CHECKPOINT_MISMATCH: "Use the files of one model, and a head with the model that it was taught on.",
  NOT_FOUND:
    "Check the name, or give all files of the model: config.json, preprocessor_config.json and the weights.",
  ACCESS_DENIED: "This page can only load public models.",
  NETWORK: "Check your connection and try again; the bundled model works offline.",
  OFFLINE: "Connect to the network once, or use the bundled model.",
  OUT_OF_MEMORY: "Choose a smaller model, or int8 weights, under Engine.",
  ENGINE_DEAD: "Load the model again under Engine.",
  DISPOSED: "Load a model under Engine.",
  DIVERGED: "Try a lower learning rate.",
};

/** An error as a sentence, with what to do. */
export function sentence_of(error: unknown): string {
  const { message, code } = error as { message?: string; code?: string };
  const text = (message ?? String(error)).trim();
  const sentence = /[.!?]$/.test(text) ? text : `${text}.`;
  const advice = code === undefined ? undefined : ADVICE[code];
  return advice === undefined ? sentence : `${sentence} ${advice}`;
}
