import { open_data_file } from "#folders";
import type { SkippedFiles } from "../../files/skipped_files.ts";
import type { ImageInput } from "../../image/raw_image.ts";
import type { FileSource } from "../../loading/open_file.ts";
import { list_kind } from "../data/image_lists.ts";
import type { LabelledImages } from "../data/labelled_images.ts";
import type { FoundFile } from "../folders/folder_types.ts";
import { images_of_tables, type TableOptions, type TableSource } from "./image_table.ts";
import { open_table, type TableKind } from "./table.ts";

interface DescribedFolder {
  images: readonly FoundFile[];
  metadata: readonly FoundFile[];
  skipped: SkippedFiles;
}

/** The images of a folder that its files of metadata list; others are counted as skipped. */
export async function open_metadata(
  { images, metadata, skipped }: DescribedFolder,
  where: string,
  options: TableOptions,
): Promise<LabelledImages> {
  const by_path = new Map(images.map(({ path, file }) => [path.join("/").normalize("NFC"), file]));
  const listed = new Set<ImageInput>();
  const sources = metadata.map((found) =>
    source_of(found, where, (path) => {
      const file = by_path.get(path);
      if (file !== undefined) listed.add(file);
      return file;
    }),
  );
  const result = await images_of_tables(await Promise.all(sources), options);
  for (const { path, file } of images)
    if (!listed.has(file)) skipped.add_named("images that the metadata doesn't list", path.join("/"));
  return result;
}

async function source_of(
  { path, file }: FoundFile,
  where: string,
  image_at: (path: string) => ImageInput | undefined,
): Promise<TableSource> {
  const folder = path.slice(0, -1);
  const name = `${where}/${path.join("/")}`;
  const kind = list_kind(name) as TableKind;
  const table = await open_table(name, kind, () => open_data_file(file as FileSource));
  const columns = table.columns.filter((column) => column.endsWith("_file_name"));
  return {
    table,
    image_columns: ["file_name", ...(columns.length === 1 ? columns : [])],
    find: async (file_name) => image_at(resolved(folder, file_name)),
    where: "the folder of the metadata",
  };
}

/** A path below a folder, without "." and "..", in Unicode form NFC. */
function resolved(folder: readonly string[], path: string): string {
  const names = [...folder];
  for (const name of path.trim().split("/")) {
    if (name === "..") names.pop();
    else if (name !== "." && name !== "") names.push(name);
  }
  return names.join("/").normalize("NFC");
}
