import { current, images, model, type StudioImage } from "../state.ts";
import { colour_image } from "../ui/colour.ts";
import { Choice, Slider } from "../ui/controls.ts";
import { h } from "../ui/dom.ts";
import { milliseconds, percent } from "../ui/format.ts";
import { Task } from "../ui/task.ts";
import type { Neighbour, PcaResult } from "../worker/types.ts";
import { type Context, heading, Panel, ref } from "./panel.ts";

/** How many near images are shown, and how many share a PCA. */
const NEIGHBOURS = 8;
const TOGETHER = 32;

/** What the model's features say: the patches' main directions as colours, and the images that are alike. */
export class FeaturesPanel extends Panel {
  readonly id = "features";
  readonly title = "Features";
  readonly icon = "features";
  #pca: { image: StudioImage; result: PcaResult } | undefined;
  readonly #over: Choice<"one" | "all">;
  readonly #opacity: Slider;
  readonly #explained = h("ul", { class: "explained", "aria-label": "Variance that each colour explains" });
  readonly #near_task = new Task();
  readonly #near = h("ol", { class: "neighbours", "aria-label": "Nearest pictures" });
  readonly #alone = h("p", { class: "hint" }, "Add more pictures to see which are alike.");

  constructor(context: Context) {
    super(context);
    this.#over = new Choice<"one" | "all">(
      "Directions from",
      { one: "This picture", all: "All pictures" },
      "one",
      () => this.refresh(),
    );
    this.#opacity = new Slider({
      label: "Colours over picture",
      min: 0,
      max: 100,
      value: 85,
      format: (value) => `${value} %`,
      on_input: () => this.#draw(),
    });
    this.element.append(
      heading(
        "What does it make of it?",
        "Each patch has a feature. Its three strongest directions are shown as red, green and blue: alike colours, alike content.",
      ),
      this.task.element,
      h("div", { class: "stack" }, this.#over.element, this.#opacity.element, this.#explained),
      h(
        "section",
        { class: "stack", "aria-labelledby": "near-title" },
        h("h3", { id: "near-title" }, "Nearest pictures"),
        this.#near_task.element,
        this.#near,
        this.#alone,
      ),
    );
    images.on_change(() => this.refresh_if_shown());
  }

  override hide(): void {
    super.hide();
    this.#near_task.stop();
  }

  protected override refresh(): void {
    const { image } = this;
    if (image === undefined) return;
    void this.task.run("Finding directions …", (signal) => this.#find_directions(image, signal));
    void this.#near_task.run("Comparing pictures …", (signal) => this.#find_near(image, signal));
  }

  async #find_directions(image: StudioImage, signal: AbortSignal): Promise<void> {
    const others = images.value.filter((other) => other !== image);
    const together = this.#over.value === "all" ? [image, ...others.slice(0, TOGETHER - 1)] : [image];
    const { on_progress } = this.task;
    const result = await this.context.client.call("pca", [together.map(ref)], { signal, on_progress });
    this.#pca = { image, result };
    this.#draw();
    const colours = ["Red", "Green", "Blue"];
    this.#explained.replaceChildren(
      ...result.explained.map((share, i) =>
        h(
          "li",
          {},
          h("span", { class: `dot dot-${i}`, "aria-hidden": "true" }),
          `${colours[i]} `,
          h("b", {}, percent(share)),
        ),
      ),
    );
    this.context.stage.detail = milliseconds(result.ms);
  }

  #draw(): void {
    if (this.#pca === undefined || this.#pca.image !== current.value) return;
    const [own] = this.#pca.result.images;
    if (own === undefined) return;
    const { rows, columns } = own.layout;
    this.context.stage.lay_over({
      image: colour_image(own.colours, columns, rows),
      layout: own.layout,
      label: "Patch features: their first three principal components as red, green and blue",
      opacity: this.#opacity.value / 100,
    });
  }

  async #find_near(image: StudioImage, signal: AbortSignal): Promise<void> {
    const others = images.value.filter((other) => other !== image);
    this.#alone.hidden = others.length > 0;
    const { on_progress } = this.#near_task;
    const near = await this.context.client.call("nearest", [ref(image), others.map(ref)], {
      signal,
      on_progress,
    });
    const by_id = new Map(others.map((other) => [other.id, other]));
    this.#near.replaceChildren(
      ...near
        .slice(0, NEIGHBOURS)
        .map((neighbour) => near_row(by_id.get(neighbour.id) as StudioImage, neighbour)),
    );
  }
}

function near_row(image: StudioImage, { similarity }: Neighbour): HTMLElement {
  const show = () => {
    current.value = image;
  };
  const small = (model.value?.image_size[0] ?? 0) < 64 ? "pixelated" : "";
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", onclick: show, "aria-label": `${image.name}, similarity ${similarity.toFixed(2)}` },
      h("img", { src: image.url, alt: "", class: small }),
      h("span", { class: "similarity" }, similarity.toFixed(2)),
    ),
  );
}
