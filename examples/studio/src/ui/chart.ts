import { s } from "./dom.ts";

export interface Series {
  name: string;
  points: readonly (readonly [number, number])[];
  /** A class that gives the line its colour. */
  class: string;
}

export interface ChartOptions {
  label: string;
  series: readonly Series[];
  x: { min: number; max: number; ticks: readonly number[]; format: (x: number) => string };
  y: { min: number; max: number; ticks: readonly number[]; format: (y: number) => string };
  /** A place on the x axis to point out. */
  marker?: number;
}

const [WIDTH, HEIGHT] = [480, 190];
const PAD = { left: 46, right: 12, top: 10, bottom: 26 };

/** A line chart. */
export function line_chart({ label, series, x, y, marker }: ChartOptions): SVGElement {
  const left = (value: number) =>
    PAD.left + ((value - x.min) / (x.max - x.min || 1)) * (WIDTH - PAD.left - PAD.right);
  const top = (value: number) =>
    HEIGHT - PAD.bottom - ((value - y.min) / (y.max - y.min || 1)) * (HEIGHT - PAD.top - PAD.bottom);
  const rows = y.ticks.map((tick) =>
    s(
      "g",
      {},
      s("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: top(tick), y2: top(tick) }),
      s("text", { x: PAD.left - 8, y: top(tick) + 4, "text-anchor": "end" }, y.format(tick)),
    ),
  );
  const columns = x.ticks.map((tick) =>
    s("text", { x: left(tick), y: HEIGHT - 6, "text-anchor": "middle" }, x.format(tick)),
  );
  const lines = series.map(({ points, class: name }) =>
    s(
      "g",
      { class: name },
      s("polyline", {
        points: points.map(([a, b]) => `${left(a).toFixed(1)},${top(b).toFixed(1)}`).join(" "),
      }),
      ...(points.length <= 24 ? points.map(([a, b]) => s("circle", { cx: left(a), cy: top(b), r: 3 })) : []),
    ),
  );
  const mark =
    marker === undefined
      ? undefined
      : s("line", {
          class: "marker",
          x1: left(marker),
          x2: left(marker),
          y1: PAD.top,
          y2: HEIGHT - PAD.bottom,
        });
  return s(
    "svg",
    { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    ...rows,
    ...columns,
    mark,
    ...lines,
  );
}
