import { round, svg, text } from "../../ts/cli/report/svg.ts";

export interface ChartPoint {
  x: number;
  y: number;
  /** Half the length of the bar through the point; default none. */
  spread?: number;
}

export interface ChartLine {
  name: string;
  points: readonly ChartPoint[];
}

export interface LineChart {
  title: string;
  x_label: string;
  y_label: string;
  /** Where the x axis, which is logarithmic, has its numbers; all above 0. */
  x_ticks: readonly number[];
  lines: readonly ChartLine[];
}

const [WIDTH, ROW] = [720, 20];
const FRAME = { left: 64, right: 24, bottom: 52, height: 320 };
const COLOURS = ["#1f6fb4", "#7a7a7a", "#3a9a4d", "#d9541e", "#8a4fb0", "#b08a1f"];

/** Lines over a logarithmic x axis, with their names above, as an SVG. */
export function line_chart({ title, x_label, y_label, x_ticks, lines }: LineChart): string {
  const top = 44 + ROW * lines.length;
  const bottom = top + FRAME.height;
  const height = bottom + FRAME.bottom;
  const ends = lines.flatMap(({ points }) => points.flatMap(({ y, spread = 0 }) => [y - spread, y + spread]));
  const low = 10 * Math.floor(Math.min(...ends) / 10);
  const high = 10 * Math.ceil(Math.max(...ends) / 10);
  const [first, last] = [Math.log(Math.min(...x_ticks)), Math.log(Math.max(...x_ticks))];
  const x = (value: number) =>
    round(
      FRAME.left +
        ((Math.log(value) - first) / (last - first || 1)) * (WIDTH - FRAME.left - FRAME.right - 20) +
        10,
    );
  const y = (value: number) => round(bottom - ((value - low) / (high - low || 1)) * FRAME.height);
  const rows = Array.from({ length: (high - low) / 10 + 1 }, (_, i) => low + 10 * i).flatMap((value) => [
    `<line x1="${FRAME.left}" y1="${y(value)}" x2="${WIDTH - FRAME.right}" y2="${y(value)}" stroke="#ddd"/>`,
    text(FRAME.left - 8, y(value) + 4, `${value}`, { anchor: "end" }),
  ]);
  const columns = x_ticks.map((tick) => text(x(tick), bottom + 18, `${tick}`, { anchor: "middle" }));
  return svg(WIDTH, height, title, [
    text(FRAME.left, 24, title, { size: 14 }),
    ...rows,
    ...columns,
    text((FRAME.left + WIDTH - FRAME.right) / 2, height - 12, x_label, { anchor: "middle" }),
    text(18, top + FRAME.height / 2, y_label, { anchor: "middle", rotate: -90 }),
    ...lines.flatMap((line, i) => {
      const colour = COLOURS[i % COLOURS.length] as string;
      const at = 36 + ROW * i;
      return [
        `<rect x="${FRAME.left}" y="${at}" width="12" height="12" fill="${colour}"/>`,
        text(FRAME.left + 18, at + 10, line.name),
        ...draw_line(line.points, colour, x, y),
      ];
    }),
  ]);
}

function draw_line(
  points: readonly ChartPoint[],
  colour: string,
  x: (value: number) => number,
  y: (value: number) => number,
): string[] {
  const path = points.map((point) => `${x(point.x)},${y(point.y)}`).join(" ");
  return [
    `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`,
    ...points.map((point) => `<circle cx="${x(point.x)}" cy="${y(point.y)}" r="3" fill="${colour}"/>`),
    ...points.map(
      ({ x: at, y: middle, spread = 0 }) =>
        `<line x1="${x(at)}" y1="${y(middle - spread)}" x2="${x(at)}" y2="${y(middle + spread)}" stroke="${colour}"/>`,
    ),
  ];
}
