import { current, type StudioImage } from "../state.ts";
import { heat_image } from "../ui/colour.ts";
import { Choice, Slider, toggle } from "../ui/controls.ts";
import { announce, h } from "../ui/dom.ts";
import { milliseconds, percent } from "../ui/format.ts";
import type { AttentionMaps } from "../worker/types.ts";
import { type Context, heading, Panel, ref } from "./panel.ts";

type Mode = "head" | "mean" | "rollout";

/** Where the CLS token looks: by layer and head, the heads' mean, or rolled out through the layers. */
export class AttentionPanel extends Panel {
  readonly id = "attention";
  readonly title = "Attention";
  readonly icon = "attention";
  #maps: { image: StudioImage; maps: AttentionMaps } | undefined;
  readonly #mode: Choice<Mode>;
  readonly #layer: Slider;
  readonly #head: Slider;
  readonly #opacity: Slider;
  #smooth = true;
  readonly #atlas = h("canvas", { class: "atlas", role: "img" });
  readonly #atlas_mark = h("div", { class: "atlas-mark", "aria-hidden": "true" });
  readonly #scale = h("p", { class: "scale" });
  readonly #body: HTMLElement;

  constructor(context: Context) {
    super(context);
    const redraw = () => this.#draw();
    this.#mode = new Choice<Mode>(
      "What to show",
      { head: "One head", mean: "Mean of heads", rollout: "Rollout" },
      "mean",
      () => {
        this.#head.disabled = this.#mode.value !== "head";
        redraw();
      },
    );
    const plain = { min: 1, max: 1, value: 1, on_input: redraw };
    this.#layer = new Slider({ ...plain, label: "Layer", format: (value) => `${value}` });
    this.#head = new Slider({ ...plain, label: "Head", format: (value) => `${value}` });
    this.#opacity = new Slider({
      label: "Heat over picture",
      min: 0,
      max: 100,
      value: 70,
      format: (value) => `${value} %`,
      on_input: redraw,
    });
    this.#head.disabled = true;
    // The sliders do the same for keyboards.
    this.#atlas.onclick = (event) => this.#pick(event);
    this.#body = h(
      "div",
      { class: "stack", hidden: true },
      this.#mode.element,
      h("div", { class: "pair" }, this.#layer.element, this.#head.element),
      h(
        "figure",
        { class: "atlas-figure" },
        h("figcaption", {}, h("span", {}, "All heads: a row for each layer"), h("span", {}, "click one")),
        h("div", { class: "atlas-frame" }, this.#atlas, this.#atlas_mark),
      ),
      h(
        "div",
        {},
        h("div", { class: "heat-scale" }, h("span", {}, "least"), h("span", {}, "most")),
        this.#scale,
      ),
      h(
        "div",
        { class: "pair" },
        this.#opacity.element,
        toggle("Blend patches", true, (on) => {
          this.#smooth = on;
          this.#draw();
        }),
      ),
    );
    this.element.append(
      heading(
        "Where does it look?",
        "How much the token that represents the whole picture (CLS) draws from each patch.",
      ),
      this.task.element,
      this.#body,
    );
  }

  protected override refresh(): void {
    const { image } = this;
    if (image === undefined) {
      this.#body.hidden = true;
      return;
    }
    void this.task.run("Reading attention …", async (signal) => {
      const maps = await this.context.client.call("attention", [ref(image)], { signal });
      const is_first = this.#maps === undefined;
      this.#maps = { image, maps };
      this.#layer.max = maps.layers;
      this.#head.max = maps.heads;
      if (is_first) this.#layer.value = maps.layers;
      this.#draw_atlas(maps);
      this.#body.hidden = false;
      this.#draw();
      this.context.stage.detail = milliseconds(maps.ms);
    });
  }

  #draw(): void {
    if (this.#maps === undefined || this.#maps.image !== current.value) return;
    const { maps } = this.#maps;
    const { columns, rows } = maps.layout;
    const [values, words] = this.#chosen(maps);
    this.context.stage.lay_over({
      image: heat_image(values, columns, rows),
      layout: maps.layout,
      label: `Heat map of attention: ${words}`,
      opacity: this.#opacity.value / 100,
      smooth: this.#smooth,
    });
    const most = values.reduce((a, b) => Math.max(a, b), 0);
    const at = values.indexOf(most);
    const text =
      `${words}: the brightest patch, row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1}, ` +
      `gets ${percent(most)}; an even look would give each ${percent(1 / (rows * columns))}.`;
    this.#scale.textContent = text;
    this.#mark(maps);
  }

  /** The map to show, and what it is in words. */
  #chosen({ cls, rollout, heads, layout }: AttentionMaps): [Float32Array, string] {
    const patches = layout.rows * layout.columns;
    const [layer, head] = [this.#layer.value - 1, this.#head.value - 1];
    const start = layer * heads * patches;
    switch (this.#mode.value) {
      case "head":
        return [
          cls.slice(start + head * patches, start + (head + 1) * patches),
          `Layer ${layer + 1}, head ${head + 1}`,
        ];
      case "mean": {
        const mean = Float32Array.from({ length: patches }, (_, i) => {
          let sum = 0;
          for (let h = 0; h < heads; h++) sum += cls[start + h * patches + i] as number;
          return sum / heads;
        });
        return [mean, `Layer ${layer + 1}, mean of ${heads} heads`];
      }
      case "rollout":
        return [rollout.slice(layer * patches, (layer + 1) * patches), `Rollout through layer ${layer + 1}`];
    }
  }

  /** All maps at once, small. */
  #draw_atlas({ cls, layers, heads, layout }: AttentionMaps): void {
    const { rows, columns } = layout;
    const patches = rows * columns;
    this.#atlas.parentElement?.style.setProperty("--heads", String(heads));
    this.#atlas.width = heads * (columns + 1) - 1;
    this.#atlas.height = layers * (rows + 1) - 1;
    this.#atlas.setAttribute("aria-label", `Attention maps of all ${layers} layers and ${heads} heads`);
    const context = this.#atlas.getContext("2d");
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const at = (layer * heads + head) * patches;
        const image = heat_image(cls.subarray(at, at + patches), columns, rows);
        context?.putImageData(image, head * (columns + 1), layer * (rows + 1));
      }
    }
  }

  #mark({ layers, heads }: AttentionMaps): void {
    const one = this.#mode.value === "head";
    const [layer, head] = [this.#layer.value - 1, one ? this.#head.value - 1 : 0];
    Object.assign(this.#atlas_mark.style, {
      left: `${(100 * head) / heads}%`,
      width: `${one ? 100 / heads : 100}%`,
      top: `${(100 * layer) / layers}%`,
      height: `${100 / layers}%`,
    });
  }

  #pick(event: MouseEvent): void {
    if (this.#maps === undefined) return;
    const { layers, heads } = this.#maps.maps;
    const box = this.#atlas.getBoundingClientRect();
    this.#layer.value =
      1 + Math.min(layers - 1, Math.floor((layers * (event.clientY - box.top)) / box.height));
    this.#mode.value = "head";
    this.#head.disabled = false;
    this.#head.value = 1 + Math.min(heads - 1, Math.floor((heads * (event.clientX - box.left)) / box.width));
    this.#draw();
    announce(this.#scale.textContent ?? "");
  }
}
