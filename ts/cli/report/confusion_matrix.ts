import { round, svg, text } from "./svg.ts";

/** The longest class name shown, in characters. */
const NAME_LENGTH = 18;
/** With more classes than this, numbers in cells would be unreadable. */
const MAX_NUMBERED = 25;
const MAX_SIDE = 900;

/** A confusion matrix as an SVG: rows are true classes, and cells are shaded by their share of the row. */
export function confusion_matrix_svg(
  matrix: readonly (readonly number[])[],
  names: readonly string[],
): string {
  const count = matrix.length;
  const cell = Math.min(44, MAX_SIDE / count);
  const margin = 8 * Math.min(NAME_LENGTH, Math.max(...names.map((name) => name.length))) + 40;
  const side = cell * count;
  const cells = matrix.flatMap((row, i) => {
    const total = row.reduce((a, b) => a + b, 0);
    return row.flatMap((value, j) =>
      cell_parts(value, total, margin + j * cell, margin + i * cell, cell, count),
    );
  });
  const labels = names.flatMap((name, i) => {
    const middle = margin + (i + 0.5) * cell;
    const size = Math.min(12, cell);
    return [
      text(margin - 6, middle + 4, shorten(name), { anchor: "end", size }),
      text(middle + 4, margin - 6, shorten(name), { anchor: "start", size, rotate: -90 }),
    ];
  });
  return svg(
    margin + side + 20,
    margin + side + 20,
    "Confusion matrix: true classes in rows, predicted in columns",
    [
      text(8, 18, "true ↓   predicted →", { size: 11, fill: "#666" }),
      ...cells,
      ...labels,
      `<rect x="${margin}" y="${margin}" width="${round(side)}" height="${round(side)}" fill="none" stroke="#888"/>`,
    ],
  );
}

function cell_parts(
  value: number,
  total: number,
  x: number,
  y: number,
  cell: number,
  count: number,
): string[] {
  if (value === 0) return [];
  const share = value / total;
  const fill = `rgb(${Math.round(235 - 204 * share)} ${Math.round(243 - 132 * share)} ${Math.round(250 - 70 * share)})`;
  const rect = `<rect x="${round(x)}" y="${round(y)}" width="${round(cell)}" height="${round(cell)}" fill="${fill}"/>`;
  if (count > MAX_NUMBERED) return [rect];
  const ink = share > 0.55 ? "#fff" : "#222";
  return [rect, text(x + cell / 2, y + cell / 2 + 4, `${value}`, { anchor: "middle", size: 11, fill: ink })];
}

function shorten(name: string): string {
  return name.length > NAME_LENGTH ? `${name.slice(0, NAME_LENGTH - 1)}…` : name;
}
