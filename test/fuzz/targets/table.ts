import { memory_file } from "../../../ts/loading/bytes.ts";
import { images_of_tables } from "../../../ts/training/tables/image_table.ts";
import { open_table, type TableKind } from "../../../ts/training/tables/table.ts";

export const dictionary = [
  "image,label\n",
  "image\tlabel\r\n",
  '{"image":"a.png","label":',
  '["x",1]',
  '"",',
  "\n",
  "PAR1",
  "1e9",
  "-0.5",
  Uint8Array.of(0xef, 0xbb, 0xbf),
  Uint8Array.of(0xff, 0xfe),
];

const KINDS: readonly TableKind[] = ["csv", "jsonl", "parquet"];

/** Every row must become an image with a label. */
export async function fuzz(bytes: Uint8Array): Promise<void> {
  const is_parquet = bytes.subarray(-4).every((byte, i) => byte === "PAR1".charCodeAt(i));
  const kind =
    is_parquet && bytes.length > 8 ? "parquet" : (KINDS[(bytes[0] ?? 0) === 123 ? 1 : 0] as TableKind);
  const table = await open_table(`list.${kind}`, kind, async () => memory_file(`list.${kind}`, bytes));
  const find = async (path: string) => path;
  const image_columns = ["image", "file_name"];
  const data = await images_of_tables([{ table, image_columns, find, where: "here" }], {});
  if (data.examples.some(({ image, label }) => image === undefined || label === undefined))
    throw new Error("A row has no image or no label.");
  for (const { image } of data.examples.slice(0, 20))
    if (typeof image === "object" && "read" in image) await image.read();
}
