/** Stops of the heat scale, dark to bright: even steps of lightness, as in inferno. */
const HEAT: readonly (readonly [number, number, number])[] = [
  [10, 7, 34],
  [66, 10, 104],
  [147, 38, 103],
  [221, 81, 58],
  [252, 165, 10],
  [252, 255, 164],
];

/** The colour of a value from 0 to 1, as [red, green, blue] from 0 to 255. */
export function heat(value: number): [number, number, number] {
  const at = Math.min(1, Math.max(0, value)) * (HEAT.length - 1);
  const low = Math.min(HEAT.length - 2, Math.floor(at));
  const mix = at - low;
  const [a, b] = [HEAT[low] as readonly number[], HEAT[low + 1] as readonly number[]];
  return [0, 1, 2].map((c) => Math.round((a[c] as number) * (1 - mix) + (b[c] as number) * mix)) as [
    number,
    number,
    number,
  ];
}

/** Values stretched to 0…1; all alike become 0. */
export function stretched(values: Float32Array): Float32Array {
  const low = values.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
  const high = values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const scale = high > low ? 1 / (high - low) : 0;
  return values.map((value) => (value - low) * scale);
}

/** An image with a pixel for each patch. */
export function heat_image(values: Float32Array, columns: number, rows: number): ImageData {
  const image = new ImageData(columns, rows);
  stretched(values).forEach((value, i) => {
    image.data.set([...heat(value), 255], 4 * i);
  });
  return image;
}

/** @param colours [patches, 3] from 0 to 1. */
export function colour_image(colours: Float32Array, columns: number, rows: number): ImageData {
  const image = new ImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) {
    const [r = 0, g = 0, b = 0] = colours.subarray(3 * i, 3 * i + 3);
    image.data.set([255 * r, 255 * g, 255 * b, 255], 4 * i);
  }
  return image;
}

/** Dark where a patch isn't visible, nothing where it is. */
export function mask_image(
  visible: readonly number[],
  columns: number,
  rows: number,
  shade: readonly number[],
): ImageData {
  const image = new ImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) image.data.set([...shade, 255], 4 * i);
  for (const patch of visible) image.data.set([0, 0, 0, 0], 4 * patch);
  return image;
}
