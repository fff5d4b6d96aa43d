/** Escapes any text for an SVG. */
export function escape_xml(text: string): string {
  const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  // biome-ignore lint/suspicious/noControlCharactersInRegex: XML doesn't allow them
  return text.replace(/[\u0000-\u001f]/g, " ").replace(/[&<>"]/g, (char) => entities[char] as string);
}

/** A document of this size in pixels, with a title for screen readers. */
export function svg(width: number, height: number, title: string, parts: readonly string[]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
      'role="img" font-family="system-ui, sans-serif" font-size="12" fill="#222">',
    `<title>${escape_xml(title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...parts,
    "</svg>\n",
  ].join("\n");
}

export interface TextOptions {
  anchor?: "start" | "middle" | "end";
  size?: number;
  fill?: string;
  /** Degrees, clockwise around the text's place. */
  rotate?: number;
}

export function text(x: number, y: number, content: string, options: TextOptions = {}): string {
  const { anchor = "start", size, fill, rotate } = options;
  const attributes = [
    `x="${round(x)}" y="${round(y)}" text-anchor="${anchor}"`,
    size === undefined ? "" : ` font-size="${size}"`,
    fill === undefined ? "" : ` fill="${fill}"`,
    rotate === undefined ? "" : ` transform="rotate(${rotate} ${round(x)} ${round(y)})"`,
  ];
  return `<text ${attributes.join("")}>${escape_xml(content)}</text>`;
}

export function round(value: number): number {
  return Math.round(value * 100) / 100;
}
