/** How large images become, in the forms that preprocessor_config.json has; pixels. */
export type ProcessorSize =
  | { height: number; width: number }
  | { shortest_edge: number; longest_edge?: number }
  | { max_height: number; max_width: number };

/** [height, width] of an image of that size after resizing, as the reference computes it. */
export function output_size(size: ProcessorSize, height: number, width: number): [number, number] {
  if ("height" in size) return [size.height, size.width];
  if ("max_height" in size) {
    const scale = Math.min(size.max_height / height, size.max_width / width);
    return [Math.trunc(height * scale), Math.trunc(width * scale)];
  }
  return shortest_edge_size(size.shortest_edge, size.longest_edge, height, width);
}

/** The shorter side becomes shortest_edge, or less where the longer one would pass longest_edge. */
function shortest_edge_size(
  shortest_edge: number,
  longest_edge: number | undefined,
  height: number,
  width: number,
): [number, number] {
  const [short, long] = height < width ? [height, width] : [width, height];
  let exact = shortest_edge;
  let rounded = shortest_edge;
  if (longest_edge !== undefined && (long / short) * shortest_edge > longest_edge) {
    exact = (longest_edge * short) / long;
    rounded = round_half_to_even(exact);
  }
  if (short === rounded) return [height, width];
  return width <= height
    ? [Math.trunc((exact * height) / width), rounded]
    : [rounded, Math.trunc((exact * width) / height)];
}

function round_half_to_even(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
