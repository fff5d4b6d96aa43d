import { current, model, type StudioImage } from "../state.ts";
import { Bars } from "../ui/bars.ts";
import { announce, h } from "../ui/dom.ts";
import { milliseconds, percent } from "../ui/format.ts";
import type { Classified } from "../worker/types.ts";
import { type Context, heading, Panel, ref } from "./panel.ts";

/** What is in the image, by the model's own classes and by those that were taught. */
export class RecognisePanel extends Panel {
  readonly id = "recognise";
  readonly title = "Recognise";
  readonly icon = "recognise";
  readonly #best = h("p", { class: "best" });
  readonly #bars = new Bars("Scores", 10);
  readonly #times = h("p", { class: "times" });
  readonly #own = h(
    "section",
    { "aria-label": "The model's classes" },
    this.#best,
    this.#bars.element,
    this.#times,
  );
  readonly #backbone: HTMLElement;
  readonly #taught_bars = new Bars("Scores of your classes", 10);
  readonly #taught = h(
    "section",
    { class: "taught-scores", hidden: true },
    h("h3", {}, "Your classes"),
    this.#taught_bars.element,
  );

  constructor(context: Context) {
    super(context);
    this.#backbone = h(
      "div",
      { class: "notice", hidden: true },
      h(
        "p",
        {},
        "This model is a backbone: it knows what pictures look like, but has no names for what is in them. ",
        "Teach it names of your own from a few pictures each.",
      ),
      h("button", { type: "button", onclick: () => context.open("teach") }, "Teach it classes"),
    );
    this.element.append(
      heading("What is it?", "The classes that the model thinks most likely, computed on this device."),
      this.task.element,
      this.#backbone,
      this.#own,
      this.#taught,
    );
  }

  protected override refresh(): void {
    const has_classes = (model.value?.labels.length ?? 0) > 0;
    this.#backbone.hidden = model.value === undefined || has_classes;
    const { image } = this;
    this.#own.hidden = image === undefined || !has_classes;
    if (image !== undefined) void this.task.run("Looking …", (signal) => this.#classify(image, signal));
  }

  async #classify(image: StudioImage, signal: AbortSignal): Promise<void> {
    const { client, stage } = this.context;
    this.element.setAttribute("aria-busy", "true");
    try {
      const found = await client.call("classify", [ref(image)], { signal });
      this.#show(found, image);
      const taught = await client.call("teach_classify", [ref(image)], { signal });
      this.#taught.hidden = taught === undefined;
      if (taught !== undefined) this.#taught_bars.update(taught);
      if (current.value === image) stage.detail = milliseconds(found.ms);
    } catch (error) {
      if (current.value === image) this.#own.hidden = true;
      throw error;
    } finally {
      this.element.setAttribute("aria-busy", "false");
    }
  }

  #show({ scores, ms, prepare_ms }: Classified, { name }: StudioImage): void {
    const [best] = scores;
    if (best === undefined) return;
    this.#best.replaceChildren(
      h("span", { class: "best-label" }, best.label),
      h("span", { class: "best-score" }, percent(best.score)),
    );
    this.#bars.update(scores);
    this.#times.textContent =
      `${milliseconds(ms)} in the network` +
      (prepare_ms > 0.5 ? `, ${milliseconds(prepare_ms)} to read the picture` : "");
    announce(`${name}: ${best.label}, ${percent(best.score)}.`);
  }
}
