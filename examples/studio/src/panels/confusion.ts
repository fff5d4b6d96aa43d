import type { Evaluation } from "vit-msn";
import { h } from "../ui/dom.ts";

/** What was taken for what, as a table. */
export function confusion_table({ labels, confusion }: Evaluation): HTMLElement {
  const head = h(
    "tr",
    {},
    h("th", { scope: "col" }, "True class"),
    labels.map((label) => h("th", { scope: "col" }, label)),
  );
  const rows = labels.map((label, i) => {
    const counts = confusion[i] as number[];
    const total = counts.reduce((a, b) => a + b, 0);
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, label),
      counts.map((count, j) =>
        h(
          "td",
          {
            class: i === j ? "right" : count > 0 ? "wrong" : "none",
            style: `--share: ${total > 0 ? count / total : 0}`,
          },
          count,
        ),
      ),
    );
  });
  return h(
    "div",
    { class: "table-scroll", role: "region", "aria-label": "What was taken for what", tabindex: "0" },
    h(
      "table",
      {},
      h("caption", {}, "Rows: what it is. Columns: what it was taken for."),
      h("thead", {}, head),
      h("tbody", {}, rows),
    ),
  );
}
