import { VitMsnError } from "../../index.ts";
import type { EmbeddedImage, ParquetFile } from "../../training/tables/parquet.ts";
import { aborted, file_error } from "./errors.ts";
import { type ListedImage, unreadable } from "./listed_image.ts";
import { type ArchiveReading, image_of } from "./members.ts";
import { open_regular, read_exactly } from "./regular_file.ts";

/**
 * The images that the rows of a Parquet file hold, as Hugging Face datasets writes them: structs { bytes, path }, or plain
 * binary. They are named by their row, from 0; one group of rows is in memory at a time.
 */
export async function* parquet_images(
  path: string,
  { signal, is_wanted }: ArchiveReading,
): AsyncGenerator<ListedImage> {
  try {
    const { ParquetFile } = await import("../../training/tables/parquet.ts");
    const file = await ParquetFile.open(path, () => open_again(path, signal));
    const column = image_column(file);
    for (let row = 0; row < file.length; row++) {
      const name = `${path}/${row}`;
      const image = is_wanted() ? await file.image(column, row) : undefined;
      if (image !== undefined && image.bytes === undefined) yield without_bytes(name, column, image);
      else yield await image_of(name, member_of(name, image), is_wanted);
    }
  } catch (error) {
    if (signal.aborted) throw aborted(signal);
    throw error instanceof VitMsnError ? error : file_error(error, path);
  }
}

async function open_again(path: string, signal: AbortSignal) {
  const { handle, size } = await open_regular(path, "a Parquet file");
  return {
    name: path,
    size,
    read: (offset: number, length: number) => {
      signal.throwIfAborted();
      return read_exactly(handle, offset, length);
    },
    close: () => handle.close(),
  };
}

/** "image", or the only other column that holds bytes. */
function image_column({ name, columns }: ParquetFile): string {
  const embedded = columns.filter(({ is_embedded }) => is_embedded).map((column) => column.name);
  const [only] = embedded;
  if (embedded.includes("image")) return "image";
  if (only !== undefined && embedded.length === 1) return only;
  const found = columns.map((column) => column.name).join(", ");
  const problem =
    only === undefined
      ? `has no column of images, as bytes or as structs { bytes, path }, among ${found}; pass files by their paths with --list`
      : `has several columns of bytes, ${embedded.join(", ")}; call the one of images "image"`;
  throw new VitMsnError("INVALID_ARGUMENT", `${name} ${problem}.`, { details: { file: name } });
}

function member_of(name: string, image: EmbeddedImage | undefined) {
  const bytes = image?.bytes ?? new Uint8Array();
  return { name, size: bytes.length, read: async () => bytes };
}

function without_bytes(name: string, column: string, { path }: EmbeddedImage): ListedImage {
  const found = path === undefined ? "neither bytes nor a path" : `no bytes, only the path ${path}`;
  const message = `${name}: ${column} has ${found}; write the file with the images' bytes, or pass the files themselves.`;
  return unreadable(name, new VitMsnError("INVALID_ARGUMENT", message, { details: { file: name } }));
}
