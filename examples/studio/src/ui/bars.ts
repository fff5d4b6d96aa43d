import type { ClassificationResult } from "vit-msn";
import { h } from "./dom.ts";
import { percent } from "./format.ts";

/** Scores as bars, best first. Rows keep their place in the document while their numbers change, so that bars move. */
export class Bars {
  readonly element: HTMLOListElement;
  readonly #rows: { row: HTMLElement; label: HTMLElement; fill: HTMLElement; value: HTMLElement }[] = [];
  readonly #limit: number;

  /** @param limit how many rows at most. */
  constructor(label: string, limit: number) {
    this.#limit = limit;
    this.element = h("ol", { class: "bars", "aria-label": label });
  }

  /** @param marked a label to point out. */
  update(scores: readonly ClassificationResult[], marked?: string): void {
    const shown = scores.slice(0, this.#limit);
    while (this.#rows.length < shown.length) this.#add_row();
    for (const [i, { row, label, fill, value }] of this.#rows.entries()) {
      const score = shown[i];
      row.hidden = score === undefined;
      if (score === undefined) continue;
      row.classList.toggle("marked", score.label === marked);
      label.textContent = score.label;
      value.textContent = percent(score.score);
      fill.style.setProperty("--share", String(Math.min(1, Math.max(0, score.score))));
    }
  }

  #add_row(): void {
    const label = h("span", { class: "bar-label" });
    const fill = h("span", { class: "bar-fill" });
    const value = h("span", { class: "bar-value" });
    const track = h("span", { class: "bar-track", "aria-hidden": "true" }, fill);
    const row = h("li", {}, label, track, value);
    this.#rows.push({ row, label, fill, value });
    this.element.append(row);
  }
}
