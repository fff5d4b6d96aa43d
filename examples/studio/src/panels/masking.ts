import { current, model, type StudioImage } from "../state.ts";
import { Bars } from "../ui/bars.ts";
import { line_chart } from "../ui/chart.ts";
import { mask_image } from "../ui/colour.ts";
import { Choice, Slider } from "../ui/controls.ts";
import { announce, debounce, h } from "../ui/dom.ts";
import { milliseconds, percent } from "../ui/format.ts";
import { icon } from "../ui/icons.ts";
import { Task } from "../ui/task.ts";
import type { AttentionMaps, Classified } from "../worker/types.ts";
import { type Context, heading, Panel, ref } from "./panel.ts";

type Order = "random" | "most" | "least";

/** Shares of the patches at which the curve is computed. */
const CURVE = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1];

interface Known {
  image: StudioImage;
  full: Classified;
  /** All patches, those that stay longest first. */
  order: number[];
}

/** What the model still recognises when it sees only some of the patches, which is how MSN trains it. */
export class MaskingPanel extends Panel {
  readonly id = "masking";
  readonly title = "Masking";
  readonly icon = "masking";
  #known: Known | undefined;
  #seed = 1;
  readonly #share: Slider;
  readonly #order: Choice<Order>;
  readonly #bars = new Bars("Scores from the visible patches", 5);
  readonly #verdict = h("p", { class: "verdict" });
  readonly #curve = h("div", { class: "curve" });
  readonly #curve_task = new Task();
  readonly #backbone = h(
    "p",
    { class: "notice", hidden: true },
    "This model has no classes; choose one with a classifier under Engine.",
  );
  readonly #body: HTMLElement;

  constructor(context: Context) {
    super(context);
    const classify_soon = debounce(() => this.#classify(), 60);
    this.#share = new Slider({
      label: "Patches the model sees",
      min: 2,
      max: 100,
      value: 50,
      format: (value) => `${value} %`,
      on_input: () => {
        this.#draw();
        classify_soon();
      },
    });
    this.#order = new Choice<Order>(
      "Which patches stay",
      { random: "Random", most: "Most looked at", least: "Least looked at" },
      "random",
      () => this.refresh(),
    );
    const shuffle = h(
      "button",
      {
        type: "button",
        onclick: () => {
          this.#seed++;
          this.#order.value = "random";
          this.refresh();
        },
      },
      icon("shuffle"),
      "Another mask",
    );
    this.#body = h(
      "div",
      { class: "stack" },
      this.#share.element,
      h("div", { class: "row spread" }, this.#order.element, shuffle),
      this.#verdict,
      this.#bars.element,
      h("h3", {}, "As patches go"),
      this.#curve_task.element,
      this.#curve,
    );
    this.element.append(
      heading(
        "How little does it need?",
        "Hidden patches aren't computed at all, as in MSN's pre-training: fewer visible patches are faster.",
      ),
      this.task.element,
      this.#backbone,
      this.#body,
    );
  }

  override hide(): void {
    super.hide();
    this.#curve_task.stop();
  }

  protected override refresh(): void {
    const { image } = this;
    const has_classes = (model.value?.labels.length ?? 0) > 0;
    this.#backbone.hidden = has_classes || model.value === undefined;
    this.#body.hidden = image === undefined || !has_classes;
    this.#curve_task.stop();
    if (image === undefined || !has_classes) return;
    void this.task.run("Looking …", async (signal) => {
      const { client } = this.context;
      const full = await client.call("classify", [ref(image)], { signal });
      const { rows, columns } = full.layout;
      const order =
        this.#order.value === "random"
          ? shuffled(rows * columns, this.#seed)
          : by_attention(await client.call("attention", [ref(image)], { signal }), this.#order.value);
      this.#known = { image, full, order };
      this.#draw();
      await this.#look(this.#known, signal);
      this.#draw_curve([]);
      void this.#follow_curve(this.#known);
    });
  }

  #visible({ order }: Known, share: number): number[] {
    return order.slice(0, Math.max(1, Math.round(share * order.length))).sort((a, b) => a - b);
  }

  #draw(): void {
    const known = this.#known;
    if (known === undefined || known.image !== current.value) return;
    const { rows, columns } = known.full.layout;
    const visible = this.#visible(known, this.#share.value / 100);
    this.context.stage.lay_over({
      image: mask_image(visible, columns, rows, shade()),
      layout: known.full.layout,
      label: `${visible.length} of ${rows * columns} patches are visible`,
      opacity: 0.97,
    });
  }

  #classify(): void {
    const known = this.#known;
    if (known === undefined || known.image !== current.value) return;
    void this.task.run("Looking …", (signal) => this.#look(known, signal));
  }

  async #look(known: Known, signal: AbortSignal): Promise<void> {
    const visible = this.#visible(known, this.#share.value / 100);
    const found = await this.context.client.call("classify", [ref(known.image), visible], { signal });
    const [whole, now] = [known.full.scores[0], found.scores[0]];
    if (whole === undefined || now === undefined) return;
    this.#bars.update(found.scores, whole.label);
    const still = now.label === whole.label;
    this.#verdict.className = `verdict ${still ? "good" : "bad"}`;
    this.#verdict.textContent = still
      ? `Still ${now.label}, from ${visible.length} of ${known.order.length} patches, in ${milliseconds(found.ms)}.`
      : `Now it sees ${now.label} (whole: ${whole.label}), from ${visible.length} of ${known.order.length} patches.`;
    this.context.stage.detail = milliseconds(found.ms);
    announce(this.#verdict.textContent);
    this.#mark_curve();
  }

  #points: [number, number][] = [];

  async #follow_curve(known: Known): Promise<void> {
    await this.#curve_task.run("Following the curve …", async (signal) => {
      this.#points = [];
      const label = known.full.scores[0]?.label;
      for (const [i, share] of CURVE.entries()) {
        const { scores } = await this.context.client.call(
          "classify",
          [ref(known.image), this.#visible(known, share)],
          { signal },
        );
        this.#points.push([100 * share, scores.find((score) => score.label === label)?.score ?? 0]);
        this.#curve_task.on_progress({ done: i + 1, total: CURVE.length });
        this.#draw_curve(this.#points);
      }
    });
  }

  #mark_curve(): void {
    if (this.#points.length > 0) this.#draw_curve(this.#points);
  }

  #draw_curve(points: readonly [number, number][]): void {
    const label = this.#known?.full.scores[0]?.label ?? "";
    const words = points.map(([share, score]) => `${share} %: ${percent(score)}`).join(", ");
    this.#curve.replaceChildren(
      line_chart({
        label: `Score of ${label} by the share of patches that are visible. ${words}`,
        series: [{ name: label, points, class: "line-accent" }],
        x: { min: 0, max: 100, ticks: [0, 25, 50, 75, 100], format: (x) => `${x} %` },
        y: { min: 0, max: 1, ticks: [0, 0.5, 1], format: (y) => `${100 * y} %` },
        marker: this.#share.value,
      }),
    );
  }
}

/** The theme's colour for what is hidden, as red, green and blue. */
function shade(): number[] {
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--mask").trim();
  return [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));
}

/** 0 to count - 1 in an order that the seed decides (mulberry32, Fisher-Yates). */
function shuffled(count: number, seed: number): number[] {
  let state = Math.imul(seed, 0x9e3779b9) >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}

/** By the rollout through all layers: what CLS drew most from stays longest, or what it drew least from. */
function by_attention({ rollout, layers, layout }: AttentionMaps, order: "most" | "least"): number[] {
  const patches = layout.rows * layout.columns;
  const last = rollout.subarray((layers - 1) * patches);
  const sign = order === "most" ? -1 : 1;
  return Array.from(last, (_, i) => i).sort((a, b) => sign * ((last[a] as number) - (last[b] as number)));
}
