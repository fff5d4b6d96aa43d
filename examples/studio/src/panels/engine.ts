import { current, model } from "../state.ts";
import { select } from "../ui/controls.ts";
import { announce, download, h, unique_id } from "../ui/dom.ts";
import { bytes, count_of, milliseconds, short_number } from "../ui/format.ts";
import { icon } from "../ui/icons.ts";
import { Task } from "../ui/task.ts";
import type { LoadProgress, ModelChoice, ModelInfo, ProfileResult, Settings } from "../worker/types.ts";
import { type Context, heading, Panel, ref } from "./panel.ts";

const MAX_THREADS = 16;
/** Forwards that a time is the middle of. */
const TIMED = 9;

/** What the page starts with. */
export const FIRST_SETTINGS: Settings = {
  model: { kind: "carried" },
  device: "auto",
  dtype: "float32",
  num_threads: usual_threads(),
};

/** Threads only help where the page may share memory between them. */
function usual_threads(): number {
  return globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
}

/** Which model runs, on what, and how fast; and other choices. */
export class EnginePanel extends Panel {
  readonly id = "engine";
  readonly title = "Engine";
  readonly icon = "engine";
  readonly #facts = h("dl", { class: "facts" });
  readonly #reasons = h("ul", { class: "reasons" });
  readonly #timing = h("p", { class: "times" });
  readonly #profile_task = new Task();
  readonly #profile = h("div", { class: "profile" });
  #files: Extract<ModelChoice, { kind: "files" }> | undefined;
  #settings = FIRST_SETTINGS;
  #last: ProfileResult | undefined;

  constructor(context: Context) {
    super(context);
    const time = h("button", { type: "button", onclick: () => this.#time() }, icon("gauge"), "Time it");
    const profile = h(
      "button",
      { type: "button", onclick: () => this.#take_profile() },
      icon("gauge"),
      "Profile the kernels",
    );
    this.element.append(
      heading("What runs here", "The model, the engine under it, and what each kernel takes."),
      this.#facts,
      this.#reasons,
      h("h3", {}, "Choose another"),
      this.#form(),
      this.task.element,
      h("h3", {}, "How fast is it?"),
      h("div", { class: "row wrap" }, time, profile),
      this.#timing,
      this.#profile_task.element,
      this.#profile,
    );
    model.watch((info) => this.#show_info(info));
  }

  /** What was chosen for the model that is loaded. */
  get settings(): Settings {
    return this.#settings;
  }

  /** Loads a model. The task's element shows what goes wrong. */
  async load(settings: Settings): Promise<void> {
    await this.task.run("Loading the model …", async (signal) => {
      const on_progress = ({ loaded, total }: LoadProgress) => this.task.on_progress({ done: loaded, total });
      const info = await this.context.client.call("load", [settings], { signal, on_progress });
      this.#settings = settings;
      model.value = info;
      announce(`${info.name} is ready.`);
    });
  }

  protected override refresh(): void {
    void this.context.client
      .call("memory", [])
      .then((memory) => this.#show_info(model.value && { ...model.value, memory }))
      .catch(() => {}); // no model yet
  }

  #form(): HTMLElement {
    const source = select(
      "Model",
      {
        carried: "Fashion: comes with the page",
        hub: "From the Hugging Face hub",
        files: "From files of yours",
      },
      "carried",
    );
    const repo_id = unique_id("repo");
    const repo = h("input", {
      id: repo_id,
      type: "text",
      ".value": "facebook/vit-msn-small",
      spellcheck: "false",
      autocapitalize: "off",
      autocomplete: "off",
    });
    const repo_field = h(
      "div",
      { class: "field", hidden: true },
      h("label", { for: repo_id }, "Repository"),
      repo,
    );
    const files_field = this.#file_field();
    source.input.onchange = () => {
      repo_field.hidden = source.input.value !== "hub";
      files_field.hidden = source.input.value !== "files";
    };
    const device = select<Settings["device"]>(
      "Backend",
      { auto: "Best there is", wasm: "CPU (WebAssembly)", webgpu: "GPU (WebGPU)" },
      FIRST_SETTINGS.device,
    );
    const dtype = select<Settings["dtype"]>(
      "Weights",
      {
        float32: "float32: exact",
        float16: "float16: half the memory",
        bfloat16: "bfloat16: half the memory",
        int8: "int8: a quarter, faster",
      },
      FIRST_SETTINGS.dtype,
    );
    const threads_id = unique_id("threads");
    const threads = h("input", {
      id: threads_id,
      type: "number",
      min: 1,
      max: MAX_THREADS,
      ".value": String(FIRST_SETTINGS.num_threads),
    });
    const submit = (event: Event) => {
      event.preventDefault();
      const choice = this.#choice(source.input.value as ModelChoice["kind"], repo.value.trim());
      if (choice === undefined) return;
      void this.load({
        model: choice,
        device: device.input.value as Settings["device"],
        dtype: dtype.input.value as Settings["dtype"],
        num_threads: threads.valueAsNumber || 1,
      });
    };
    return h(
      "form",
      { class: "settings", onsubmit: submit },
      source.element,
      repo_field,
      files_field,
      h(
        "div",
        { class: "pair" },
        device.element,
        dtype.element,
        h("div", { class: "field" }, h("label", { for: threads_id }, "Threads"), threads),
      ),
      h("button", { type: "submit", class: "primary" }, "Load"),
    );
  }

  #choice(kind: ModelChoice["kind"], repo: string): ModelChoice | undefined {
    if (kind === "carried") return { kind };
    if (kind === "hub" && repo !== "") return { kind, repo };
    if (kind === "files" && this.#files !== undefined) return this.#files;
    this.task.fail(
      new Error(
        kind === "hub"
          ? 'Write the name of a repository, such as "facebook/vit-msn-small".'
          : "Choose the model's folder or its files first.",
      ),
    );
    return undefined;
  }

  #file_field(): HTMLElement {
    const hint = h("span", { class: "hint" }, "config.json, preprocessor_config.json and the weights");
    const take = (input: HTMLInputElement) => {
      const files = [...(input.files ?? [])];
      if (files.length === 0) return;
      const name = files[0]?.webkitRelativePath.split("/")[0] || count_of(files.length, "file");
      this.#files = {
        kind: "files",
        name,
        files: new Map(files.map((file) => [file.webkitRelativePath || file.name, file])),
      };
      hint.textContent = `${name}: ${files
        .map((file) => file.name)
        .slice(0, 6)
        .join(", ")}`;
    };
    const picker = (label: string, folder: boolean) => {
      const input = h("input", {
        type: "file",
        multiple: true,
        webkitdirectory: folder,
        class: "visually-hidden",
        tabindex: "-1",
        "aria-label": label,
        onchange: () => take(input),
      });
      return [h("button", { type: "button", onclick: () => input.click() }, label), input];
    };
    return h(
      "div",
      { class: "field", hidden: true },
      h("div", { class: "row wrap" }, picker("Choose a folder", true), picker("Choose files", false)),
      hint,
    );
  }

  #show_info(info: ModelInfo | undefined): void {
    this.#facts.hidden = info === undefined;
    if (info === undefined) return;
    const { engine, memory, image_size, patch_size } = info;
    const where = engine.adapter
      ? `WebGPU on ${engine.adapter.name || engine.adapter.vendor}`
      : `CPU, ${engine.level}`;
    const facts: [string, string][] = [
      ["Model", info.name],
      ["Runs on", where],
      ["Threads", engine.adapter ? "the GPU's own" : String(engine.threads)],
      ["Weights", info.dtype],
      ["Size", `${short_number(info.parameters)} parameters, ${info.layers} layers, ${info.heads} heads`],
      ["Looks at", `${image_size[1]} × ${image_size[0]} pixels in patches of ${patch_size}`],
      ["Memory", `${bytes(memory.bytes)} used, ${bytes(memory.reserved)} reserved`],
      ["Loaded in", milliseconds(info.load_ms)],
    ];
    this.#facts.replaceChildren(...facts.flatMap(([term, text]) => [h("dt", {}, term), h("dd", {}, text)]));
    this.#reasons.replaceChildren(
      ...[...engine.reasons, ...info.warnings].map((reason) => h("li", {}, reason)),
    );
  }

  #time(): void {
    const { image } = this;
    if (image === undefined) {
      this.#no_image();
      return;
    }
    void this.#profile_task.run("Timing …", async (signal) => {
      const times: number[] = [];
      for (let i = 0; i < TIMED; i++) {
        times.push((await this.context.client.call("classify", [ref(image)], { signal })).ms);
        this.#profile_task.on_progress({ done: i + 1, total: TIMED });
      }
      times.sort((a, b) => a - b);
      const middle = times[Math.floor(TIMED / 2)] as number;
      this.#timing.textContent =
        `A picture takes ${milliseconds(middle)} (middle of ${TIMED}; fastest ${milliseconds(times[0] as number)}): ` +
        `${Math.max(1, Math.round(1000 / middle)).toLocaleString("en")} a second.`;
      announce(this.#timing.textContent);
    });
  }

  #take_profile(): void {
    const { image } = this;
    if (image === undefined) {
      this.#no_image();
      return;
    }
    void this.#profile_task.run("Profiling …", async (signal) => {
      const found = await this.context.client.call("profile", [ref(image)], { signal });
      this.#last = found;
      this.#show_profile(found);
    });
  }

  #no_image(): void {
    this.#profile_task.fail(new Error(current.value ? "Load a model first." : "Choose a picture first."));
  }

  #show_profile({ rows, wall_ms, device, chrome_trace }: ProfileResult): void {
    const timed = rows.reduce((sum, row) => sum + (row.ms ?? 0), 0);
    const longest = Math.max(...rows.map((row) => row.ms ?? 0), Number.MIN_VALUE);
    const flop = rows.reduce((sum, row) => sum + row.flop, 0);
    const head = ["Kernel", "Calls", "Time", "GFLOP/s"].map((text) => h("th", { scope: "col" }, text));
    const body = rows.map(({ name, calls, ms, flop }) =>
      h(
        "tr",
        { style: `--share: ${(ms ?? 0) / longest}` },
        h("th", { scope: "row" }, name),
        h("td", {}, calls),
        h("td", {}, ms === undefined ? "–" : milliseconds(ms)),
        h("td", {}, ms && flop ? (flop / ms / 1e6).toFixed(1) : "–"),
      ),
    );
    this.#profile.replaceChildren(
      h(
        "p",
        { class: "times" },
        `${device}: a forward pass of ${milliseconds(wall_ms)}, ${milliseconds(timed)} of it in kernels, ${(flop / 1e9).toFixed(2)} GFLOP.`,
      ),
      h(
        "div",
        { class: "table-scroll", role: "region", "aria-label": "Kernel profile", tabindex: "0" },
        h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)),
      ),
      h(
        "div",
        { class: "row wrap" },
        h(
          "button",
          {
            type: "button",
            onclick: () =>
              download(new Blob([chrome_trace], { type: "application/json" }), "vit-msn-trace.json"),
          },
          icon("download"),
          "Chrome trace",
        ),
        h(
          "button",
          {
            type: "button",
            onclick: () =>
              download(new Blob([this.#last?.table ?? ""], { type: "text/markdown" }), "vit-msn-profile.md"),
          },
          icon("download"),
          "Table",
        ),
      ),
    );
  }
}
