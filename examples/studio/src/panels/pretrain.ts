import { is_image_name } from "vit-msn";
import { images, model } from "../state.ts";
import { line_chart } from "../ui/chart.ts";
import { Choice, select } from "../ui/controls.ts";
import { announce, download, h, unique_id } from "../ui/dom.ts";
import { count_of, seconds } from "../ui/format.ts";
import { icon } from "../ui/icons.ts";
import type { Client } from "../worker/client.ts";
import type { PretrainingProgress, PretrainingSettings, PretrainingStep, Settings } from "../worker/types.ts";
import type { EnginePanel } from "./engine.ts";
import { type Context, heading, Panel } from "./panel.ts";

/** Where the form's values are stored for a run that is resumed after the page was closed. */
const KEY = "studio-pretraining";
/** Points that a curve is drawn with, and how often, in ms. */
const POINTS = 240;
const REDRAW_MS = 250;
/** Steps that the curves' axis has at least. */
const FEWEST_SHOWN = 10;
const MIN_IMAGES = 8;

type Numbers = Pick<
  PretrainingSettings,
  "epochs" | "batch_size" | "learning_rate" | "num_proto" | "focal_views" | "patch_drop"
>;
/** For a few hundred images. */
const DEFAULTS: Numbers = {
  epochs: 20,
  batch_size: 32,
  learning_rate: 0.001,
  num_proto: 64,
  focal_views: 2,
  patch_drop: 0.15,
};
const FIELDS: readonly {
  name: keyof Numbers;
  label: string;
  min: number;
  max: number;
  step: number | "any";
}[] = [
  { name: "epochs", label: "Passes over the pictures", min: 1, max: 10_000, step: 1 },
  { name: "batch_size", label: "Pictures a step", min: 2, max: 1024, step: 1 },
  { name: "learning_rate", label: "Learning rate", min: 0.000001, max: 1, step: "any" },
  { name: "num_proto", label: "Prototypes", min: 2, max: 4096, step: 1 },
  { name: "focal_views", label: "Focal views", min: 0, max: 20, step: 1 },
  { name: "patch_drop", label: "Share of patches dropped", min: 0, max: 0.95, step: 0.05 },
];

/** Self-supervised learning by MSN on the user's own images, without labels, in a separate Worker. */
export class PretrainPanel extends Panel {
  readonly id = "pretrain";
  readonly title = "Pre-train";
  readonly icon = "pretrain";
  readonly #engine: EnginePanel;
  readonly #client: () => Client;
  readonly #inputs = new Map<keyof Numbers, HTMLInputElement>();
  #folder: readonly File[] = [];
  #steps: PretrainingStep[] = [];
  #drawn_at = 0;
  readonly #from: Choice<"strip" | "folder">;
  readonly #summary = h("p", { class: "hint" });
  readonly #start_from: HTMLSelectElement;
  readonly #device: HTMLSelectElement;
  readonly #form: HTMLFormElement;
  readonly #go: HTMLButtonElement;
  readonly #go_on: HTMLButtonElement;
  readonly #stop: HTMLButtonElement;
  readonly #run: HTMLElement;
  readonly #numbers = h("dl", { class: "run-numbers" });
  readonly #loss = h("div", {});
  readonly #use = h("div", {});
  readonly #warning = h("div", { class: "notice", role: "alert", hidden: true });
  readonly #made: HTMLElement;

  /** @param client makes the Worker that the run has for itself. */
  constructor(context: Context, engine: EnginePanel, client: () => Client) {
    super(context);
    this.#engine = engine;
    let made: Client | undefined;
    this.#client = () => {
      made ??= client();
      return made;
    };
    const folder = h("input", {
      type: "file",
      multiple: true,
      webkitdirectory: true,
      class: "visually-hidden",
      tabindex: "-1",
      "aria-label": "A folder of pictures",
      onchange: () => {
        this.#folder = [...(folder.files ?? [])].filter(({ name }) => is_image_name(name));
        this.#from.value = "folder";
        this.#tell_data();
      },
    });
    this.#from = new Choice<"strip" | "folder">(
      "Pictures to learn from",
      { strip: "Those in the strip", folder: "A folder" },
      "strip",
      (from) => {
        if (from === "folder" && this.#folder.length === 0) folder.click();
        this.#tell_data();
      },
    );
    const start_from = select(
      "Begin with",
      {
        tiny: "A fresh encoder, tiny: 28 pixels",
        small: "A fresh encoder, small: 32 pixels",
        medium: "A fresh encoder, medium: 64 pixels",
        loaded: "The loaded model's backbone",
      },
      "tiny",
    );
    const device = select<Settings["device"]>(
      "Backend",
      { auto: "Best there is", wasm: "CPU (WebAssembly)", webgpu: "GPU (WebGPU)" },
      "auto",
    );
    this.#start_from = start_from.input;
    this.#device = device.input;
    this.#go = h("button", { type: "submit", class: "primary" }, icon("play"), "Start");
    this.#go_on = h(
      "button",
      { type: "button", hidden: true, onclick: () => void this.#train(true) },
      icon("play"),
      "Go on",
    );
    this.#stop = h(
      "button",
      { type: "button", hidden: true, onclick: () => void this.#client().call("pretrain_stop", []) },
      icon("stop"),
      "Stop and keep",
    );
    this.#form = h(
      "form",
      {
        class: "settings",
        onsubmit: (event: Event) => {
          event.preventDefault();
          void this.#train(false);
        },
      },
      h(
        "div",
        { class: "row spread" },
        this.#from.element,
        h("button", { type: "button", onclick: () => folder.click() }, "Choose a folder"),
        folder,
      ),
      this.#summary,
      h("div", { class: "pair" }, start_from.element, device.element),
      h("details", {}, h("summary", {}, "How it learns"), h("div", { class: "pair" }, this.#fields())),
    );
    const buttons = h("div", { class: "row wrap" }, this.#go, this.#go_on, this.#stop);
    this.#form.append(buttons);
    this.#run = h(
      "section",
      { "aria-label": "The run", hidden: true },
      this.#numbers,
      this.#warning,
      h("h3", {}, "Loss"),
      this.#loss,
      h("h3", {}, "Prototypes in use"),
      this.#use,
    );
    this.#made = h(
      "div",
      { class: "row wrap", hidden: true },
      h("button", { type: "button", class: "primary", onclick: () => void this.#use_here() }, "Use it here"),
      h(
        "button",
        { type: "button", onclick: () => void this.#export() },
        icon("download"),
        "Save as a model",
      ),
    );
    this.element.append(
      heading(
        "Pre-train without labels",
        "Masked Siamese Networks: the model learns to see the same in a picture and in a cropped, recoloured view of it " +
          "whose patches are partly hidden. Your pictures stay on this device.",
      ),
      this.#form,
      this.task.element,
      this.#run,
      this.#made,
    );
    images.watch(() => this.#tell_data());
  }

  /** The run continues while other panels are shown. */
  override hide(): void {
    this.context.stage.clear_overlay();
  }

  protected override refresh(): void {
    this.#tell_data();
    if (!this.task.is_running) void this.#find_checkpoint();
  }

  #fields(): HTMLElement[] {
    return FIELDS.map(({ name, label, min, max, step }) => {
      const id = unique_id(name);
      const input = h("input", {
        id,
        type: "number",
        min,
        max,
        step,
        required: true,
        ".value": String(DEFAULTS[name]),
      });
      this.#inputs.set(name, input);
      return h("div", { class: "field" }, h("label", { for: id }, label), input);
    });
  }

  #images(): readonly Blob[] {
    return this.#from.value === "folder" ? this.#folder : images.value.map(({ blob }) => blob);
  }

  #tell_data(): void {
    const { length } = this.#images();
    const more = length < MIN_IMAGES ? ` Give it ${MIN_IMAGES} at least; hundreds are better.` : "";
    const name = this.#folder[0]?.webkitRelativePath.split("/")[0];
    const where = this.#from.value === "folder" ? (name ? ` in ${name}` : " chosen") : "";
    this.#summary.textContent = `${count_of(length, "picture")}${where}.${more}`;
    this.#go.disabled = this.task.is_running || length < MIN_IMAGES;
    this.#go_on.disabled = this.#go.disabled;
  }

  /** Whether there is a checkpoint to resume from, also one of an earlier visit. */
  async #find_checkpoint(): Promise<void> {
    const step = await this.#client()
      .call("pretrain_stored_step", [])
      .catch(() => undefined); // without storage there is no checkpoint
    this.#go_on.hidden = step === undefined;
    if (step !== undefined && this.#steps.length === 0) this.#recall();
    this.#go_on.lastChild?.replaceWith(`Resume from step ${step}`);
  }

  /** The fields that a run's options come from, but for the data. */
  #fields_of_run(): (HTMLInputElement | HTMLSelectElement)[] {
    return [this.#start_from, this.#device, ...this.#inputs.values()];
  }

  #remember(): void {
    try {
      localStorage.setItem(KEY, JSON.stringify(this.#fields_of_run().map(({ value }) => value)));
    } catch {
      // storage may be forbidden; then the user sets them again
    }
  }

  /** A checkpoint only fits the options that it was made with. */
  #recall(): void {
    try {
      const values = JSON.parse(localStorage.getItem(KEY) ?? "[]") as string[];
      for (const [i, field] of this.#fields_of_run().entries()) field.value = values[i] ?? field.value;
    } catch {
      // as above
    }
  }

  #settings(): PretrainingSettings {
    const numbers = Object.fromEntries(
      [...this.#inputs].map(([name, input]) => [name, input.valueAsNumber]),
    ) as Numbers;
    const start = this.#start_from.value as "tiny" | "small" | "medium" | "loaded";
    const { num_proto } = numbers;
    return {
      ...numbers,
      start: start === "loaded" ? this.#engine.settings.model : start,
      device: this.#device.value as Settings["device"],
      num_threads: this.#engine.settings.num_threads,
      // In keeping with the number of prototypes; the paper has 2048 and 256 for 1024.
      hidden_dim: Math.min(2048, Math.max(128, 4 * num_proto)),
      output_dim: Math.min(256, Math.max(32, num_proto)),
      save_steps: 50,
    };
  }

  async #train(resume: boolean): Promise<void> {
    if (!this.#form.reportValidity()) return;
    const [data, settings] = [this.#images(), this.#settings()];
    if (!resume) this.#steps = [];
    this.#run.hidden = false;
    this.#made.hidden = this.#warning.hidden = true;
    const work = this.task.run("Learning …", async (signal) => {
      const { step, max_steps } = await this.#client().call("pretrain", [data, settings, resume], {
        signal,
        on_progress: (progress: PretrainingProgress) => this.#hear(progress),
      });
      this.#made.hidden = false;
      announce(step < max_steps ? `Stopped after step ${step}; it can go on.` : `Done after ${step} steps.`);
    });
    if (!resume) this.#remember();
    this.#running(true);
    await work;
    this.#running(false);
    this.#draw();
    await this.#find_checkpoint();
  }

  #running(is_running: boolean): void {
    this.#stop.hidden = !is_running;
    this.#go.hidden = is_running;
    if (is_running) this.#go_on.hidden = true;
    this.#tell_data();
  }

  #hear(progress: PretrainingProgress): void {
    if (progress.kind === "warning") {
      this.#warning.textContent = progress.message;
      this.#warning.hidden = false;
      return;
    }
    this.#steps.push(progress);
    this.task.on_progress({ done: progress.step, total: progress.max_steps });
    const now = performance.now();
    if (now - this.#drawn_at < REDRAW_MS) return;
    this.#drawn_at = now;
    this.#draw();
  }

  #draw(): void {
    const last = this.#steps.at(-1);
    if (last === undefined) return;
    const { step, max_steps, epoch, loss, prototypes_used, images_per_second, eta_seconds } = last;
    const facts: [string, string][] = [
      ["Step", `${step} of ${max_steps}`],
      ["Pass", epoch.toFixed(1)],
      ["Loss", loss.toFixed(3)],
      ["Prototypes", `${prototypes_used} of ${this.#inputs.get("num_proto")?.value}`],
      ["Pictures a second", images_per_second.toFixed(1)],
      ["To go", step < max_steps ? seconds(eta_seconds) : "done"],
    ];
    this.#numbers.replaceChildren(
      ...facts.map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text))),
    );
    const shown = thinned(this.#steps);
    this.#loss.replaceChildren(
      curve(
        "Loss by step",
        shown,
        ({ loss }) => loss,
        (y) => y.toFixed(2),
      ),
    );
    this.#use.replaceChildren(
      curve(
        "Prototypes in use by step",
        shown,
        (at) => at.prototypes_used,
        (y) => y.toFixed(0),
        0,
      ),
    );
  }

  async #use_here(): Promise<void> {
    await this.task.run("Handing it over …", async (signal) => {
      const files = await this.#client().call("pretrain_files", [], { signal });
      const { settings } = this.#engine;
      await this.#engine.load({ ...settings, model: { kind: "files", name: "Pre-trained here", files } });
      if (model.value?.name === "Pre-trained here") this.context.open("teach");
      else this.context.open("engine");
    });
  }

  async #export(): Promise<void> {
    await this.task.run("Packing …", async (signal) => {
      download(await this.#client().call("pretrain_export", [], { signal }), "vit-msn-pretrained.zip");
      announce("vit-msn-pretrained.zip is in your downloads.");
    });
  }
}

/** At most POINTS of them, evenly, the last among them. */
function thinned(steps: readonly PretrainingStep[]): readonly PretrainingStep[] {
  const every = Math.ceil(steps.length / POINTS);
  return steps.filter((_, i) => (steps.length - 1 - i) % every === 0);
}

/** @param least where the y axis begins; default the least value. */
function curve(
  label: string,
  steps: readonly PretrainingStep[],
  value: (step: PretrainingStep) => number,
  format: (y: number) => string,
  least?: number,
): SVGElement {
  const values = steps.map(value);
  const low = least ?? Math.min(...values);
  const high = Math.max(...values, low + 1e-3);
  const last = values.at(-1) ?? 0;
  const far = Math.max(FEWEST_SHOWN, steps.at(-1)?.step ?? 0);
  return line_chart({
    label: `${label}, now ${format(last)}`,
    series: [
      { name: label, points: steps.map((step, i) => [step.step, values[i] as number]), class: "line-accent" },
    ],
    x: { min: 0, max: far, ticks: [0, Math.round(far / 2), far], format: (x) => `${x}` },
    y: { min: low, max: high, ticks: [low, (low + high) / 2, high], format },
  });
}
