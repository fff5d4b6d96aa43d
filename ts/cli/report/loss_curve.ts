import type { LogEntry } from "../../training/index.ts";
import { round, svg, text } from "./svg.ts";

interface Point {
  step: number;
  value: number;
}

const [WIDTH, HEIGHT] = [720, 400];
/** The distance between entries of the legend. */
const LEGEND = 210;
const FRAME = { left: 64, right: 20, top: 44, bottom: 52 };

/** One curve: a value of the log's entries, by its key there. */
export interface Line {
  name: string;
  key: string;
  colour: string;
  /** Transforms a value before it is drawn. */
  shown?: (value: number) => number;
}

export const COLOURS = ["#1f6fb4", "#d9541e", "#2e8b57"] as const;
const LOSSES: readonly Line[] = [
  { name: "training loss", key: "loss", colour: COLOURS[0] },
  { name: "validation loss", key: "eval_loss", colour: COLOURS[1] },
];

/** The losses of a training run by step, as an SVG. */
export function loss_curve(log: readonly LogEntry[]): string {
  return log_curves(log, "Loss by optimiser step", LOSSES);
}

/** Non-negative values of a run's log by step, as an SVG. */
export function log_curves(log: readonly LogEntry[], title: string, wanted: readonly Line[]): string {
  const lines = wanted
    .map((line) => ({ ...line, points: points_of(log, line) }))
    .filter(({ points }) => points.length > 0);
  const all = lines.flatMap(({ points }) => points);
  const last = Math.max(1, ...all.map(({ step }) => step));
  const top = nice_ceiling(Math.max(1e-6, ...all.map(({ value }) => value)));
  const x = (step: number) => FRAME.left + (step / last) * (WIDTH - FRAME.left - FRAME.right);
  const y = (value: number) => HEIGHT - FRAME.bottom - (value / top) * (HEIGHT - FRAME.top - FRAME.bottom);
  return svg(WIDTH, HEIGHT, title, [
    ...axes(last, top, x, y),
    ...lines.flatMap(({ name, colour, points }, i) => [
      curve(points, colour, x, y),
      `<rect x="${FRAME.left + LEGEND * i}" y="18" width="12" height="12" fill="${colour}"/>`,
      text(FRAME.left + LEGEND * i + 18, 28, `${name}: ${points.at(-1)?.value.toPrecision(4)}`),
    ]),
  ]);
}

function points_of(log: readonly LogEntry[], { key, shown = (value) => value }: Line): Point[] {
  return log.flatMap(({ step, [key]: value }) =>
    value !== undefined && Number.isFinite(value) ? [{ step, value: shown(value) }] : [],
  );
}

/** A line, or a dot for a single point. */
function curve(
  points: readonly Point[],
  colour: string,
  x: (step: number) => number,
  y: (value: number) => number,
): string {
  const [first] = points as [Point];
  if (points.length === 1)
    return `<circle cx="${round(x(first.step))}" cy="${round(y(first.value))}" r="4" fill="${colour}"/>`;
  const path = points.map(({ step, value }) => `${round(x(step))},${round(y(value))}`).join(" ");
  return `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`;
}

function axes(
  last: number,
  top: number,
  x: (step: number) => number,
  y: (value: number) => number,
): string[] {
  const [right, bottom] = [WIDTH - FRAME.right, HEIGHT - FRAME.bottom];
  const rows = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => {
    const at = round(y(share * top));
    return [
      `<line x1="${FRAME.left}" y1="${at}" x2="${right}" y2="${at}" stroke="#ddd"/>`,
      text(FRAME.left - 8, at + 4, `${Number((share * top).toPrecision(3))}`, { anchor: "end" }),
    ];
  });
  const steps = [...new Set([0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(share * last)))];
  const columns = steps.map((step) => text(x(step), bottom + 18, `${step}`, { anchor: "middle" }));
  return [...rows, ...columns, text((FRAME.left + right) / 2, HEIGHT - 12, "step", { anchor: "middle" })];
}

/** Rounds up to 1, 2 or 5 times a power of ten. */
function nice_ceiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5, 10].find((digit) => digit * power >= value) ?? 10) * power;
}
