import { type Digest, write_file } from "../../files/index.ts";
import type { Row, RowFile } from "./rows.ts";

/** Rows are written in blocks of about this many characters. */
const BLOCK_CHARACTERS = 1 << 20;

/**
 * A header and a line for each image, as RFC 4180 has it but with line feeds alone: `image` and `embedding_0`, …, or
 * `label_1`, `score_1`, … from the likeliest class on.
 */
export async function write_csv(path: string, file: RowFile): Promise<Digest> {
  return write_file(path, csv(file));
}

async function* csv({ rows, width, has_labels }: RowFile): AsyncGenerator<Uint8Array> {
  const names = Array.from({ length: width }, (_, i) =>
    has_labels ? `label_${i + 1},score_${i + 1}` : `embedding_${i}`,
  );
  let block = `${["image", ...names].join(",")}\n`;
  for await (const row of rows()) {
    block += `${fields(row).join(",")}\n`;
    if (block.length < BLOCK_CHARACTERS) continue;
    yield Buffer.from(block);
    block = "";
  }
  yield Buffer.from(block);
}

function fields({ image, values, labels }: Row): string[] {
  const numbers = Array.from(values, shortest);
  if (labels === undefined) return [quoted(image), ...numbers];
  return [quoted(image), ...labels.flatMap((label, i) => [quoted(label), numbers[i] as string])];
}

/** Nine digits distinguish all float32 numbers. */
const shortest = (value: number): string => String(Number(value.toPrecision(9)));

export const quoted = (text: string): string =>
  /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
