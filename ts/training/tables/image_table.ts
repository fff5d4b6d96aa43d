import { env } from "../../env.ts";
import { throw_if_aborted, VitMsnError } from "../../errors.ts";
import type { ImageInput } from "../../image/raw_image.ts";
import type { ProblemType } from "../../model/configuration_vit_msn.ts";
import type { Example, LazyImage } from "../data/dataset.ts";
import { LabelledImages } from "../data/labelled_images.ts";
import { interpret_labels, type LabelCell } from "./labels.ts";
import type { ParquetFile } from "./parquet.ts";
import type { Table, TableRow } from "./table.ts";
import { bad_file, bad_row } from "./table_errors.ts";

/** Rows whose images are looked up at a time. */
const LOOKUPS = 64;
/** Rows that a message names. */
const MAX_NAMED = 10;

/** How the rows of lists and metadata become labelled images. */
export interface TableOptions {
  /** The column of images: paths, URLs or bytes. Default "image", else "file_name". */
  image_column_name?: string;
  /** The column of labels; default "label", else "labels". */
  label_column_name?: string;
  /** What separates several labels in text, such as "|"; default: text is one label. */
  label_separator?: string;
  /** Default: by the labels. Lists mean several classes for each image, numbers with fractions regression. */
  problem_type?: ProblemType;
  /** The classes, in the order of their indices; default: all labels, sorted, or what a Parquet file's ClassLabel names. */
  classes?: readonly string[];
  /** What to do with rows whose image doesn't exist: throw an "error" (default), or "skip" them with a warning. */
  missing_images?: "error" | "skip";
  signal?: AbortSignal;
}

/** A table, and how to find the images that it names. */
export interface TableSource {
  table: Table;
  /** The columns that images are in by default, in the order of preference. */
  image_columns: readonly string[];
  /** An image by its path or URL; undefined if there is none. */
  find(path: string): Promise<ImageInput | undefined>;
  /** What paths are relative to, for messages. */
  where: string;
}

/** A row's image before it is looked up: a path or URL, or bytes in a Parquet file. */
type ImageCell = string | { column: string; row: number; parquet: ParquetFile };

/** A row that names an image and its label. */
interface Row {
  source: TableSource;
  image: ImageCell;
  label: LabelCell;
}

/**
 * The images that tables list.
 * @throws VitMsnError INVALID_ARGUMENT that names file, row and column; NOT_FOUND for missing images.
 */
export async function images_of_tables(
  sources: readonly TableSource[],
  options: TableOptions,
): Promise<LabelledImages> {
  const rows: Row[] = [];
  const tables = sources.map((source) => ({ source, ...columns_of(source, options) }));
  for (const { source, image, label } of tables) {
    const { table } = source;
    // Images in a Parquet file are read when they are needed.
    const columns = is_embedded(table, image) ? [label] : [image, label];
    for await (const row of table.rows(columns)) {
      throw_if_aborted(options.signal, `Reading ${table.name}`);
      rows.push(row_of(source, row, { image, label }, options));
    }
  }
  const names = sources.map(({ table }) => table.name).join(", ");
  if (rows.length === 0) throw bad_file(names, "has no rows; add one for each image");
  const found = await look_up(rows, options);
  const examples = found.flatMap(({ image, row }) => (image === undefined ? [] : [{ image, row }]));
  if (examples.length === 0) throw missing_error(rows, rows, names);
  warn_of_repeats(examples, names);
  const { classes, labels, problem_type } = interpret_labels(
    examples.map(({ row }) => row.label),
    { ...options, ...facts_of(tables) },
  );
  return new LabelledImages(
    classes,
    examples.map(({ image }, i) => ({ image, label: labels[i] as NonNullable<Example["label"]> })),
    problem_type,
  );
}

// Columns.

function columns_of(source: TableSource, options: TableOptions): { image: string; label: string } {
  const { image_column_name, label_column_name } = options;
  // In the metadata of a folder, "image" is the column file_name, and any other x is x_file_name.
  const images =
    image_column_name === undefined
      ? source.image_columns
      : [
          image_column_name,
          `${image_column_name}_file_name`,
          ...(image_column_name === "image" ? source.image_columns : []),
        ];
  const labels = label_column_name === undefined ? ["label", "labels"] : [label_column_name];
  return {
    image: column_of(source.table, images, "images", "image_column_name"),
    label: column_of(source.table, labels, "labels", "label_column_name"),
  };
}

function column_of(
  { name, columns }: Table,
  wanted: readonly string[],
  what: string,
  option: string,
): string {
  const found = wanted.find((column) => columns.includes(column));
  if (found !== undefined) return found;
  const names = columns.slice(0, 30).map((column) => JSON.stringify(column));
  throw bad_file(
    name,
    `has no column ${wanted.map((column) => JSON.stringify(column)).join(" or ")}, but ${names.join(", ")}; ` +
      `name the one of the ${what} by ${option}`,
  );
}

/**
 * What Parquet files know of their labels' columns.
 * @throws VitMsnError INVALID_ARGUMENT if integers stand for other classes in some of them.
 */
function facts_of(tables: readonly { source: TableSource; label: string }[]) {
  const columns = tables.map(({ source: { table }, label }) => ({
    table,
    ...table.parquet?.columns.find(({ name }) => name === label),
  }));
  const [first] = columns;
  const class_names = first?.class_names;
  for (const column of columns)
    if (column.class_names?.join("\n") !== class_names?.join("\n"))
      throw bad_file(
        column.table.name,
        `has labels of the classes ${class_list(column.class_names)}, but ${first?.table.name} of ${class_list(class_names)}; open them separately`,
      );
  return {
    class_names,
    is_text: columns.some(({ table }) => table.is_text),
    is_float: columns.some(({ is_float = false }) => is_float),
  };
}

function class_list(names: readonly string[] | undefined): string {
  return names === undefined ? "that it doesn't name" : names.slice(0, 20).join(", ").slice(0, 300);
}

// Rows.

function row_of(
  source: TableSource,
  row: TableRow,
  columns: { image: string; label: string },
  options: TableOptions,
): Row {
  const { table } = source;
  const place = `${table.unit} ${row.number}`;
  const value = plain(row.values[columns.label]);
  const label: LabelCell = {
    value: split_labels(value, options.label_separator),
    file: table.name,
    place,
    column: columns.label,
  };
  return { source, image: image_cell(table, columns.image, row, place), label };
}

/** Lists are arrays, whatever their reader has made. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array || !ArrayBuffer.isView(value)) return value;
  return Array.from(value as unknown as ArrayLike<unknown>);
}

/** The labels in a text; anything else unchanged. */
export function split_labels(value: unknown, separator: string | undefined): unknown {
  if (typeof value !== "string" || separator === undefined) return value;
  return value
    .split(separator)
    .map((label) => label.trim())
    .filter((label) => label !== "");
}

function is_embedded({ parquet }: Table, column: string): boolean {
  return parquet?.columns.find(({ name }) => name === column)?.is_embedded ?? false;
}

function image_cell(table: Table, column: string, { number, values }: TableRow, place: string): ImageCell {
  if (is_embedded(table, column)) return { column, row: number - 1, parquet: table.parquet as ParquetFile };
  const value = values[column];
  if (typeof value === "string" && value.trim() !== "") return value;
  const found = value === undefined || value === null || value === "" ? "is empty" : "isn't text";
  throw bad_row(table.name, place, `${found}; expected the path or URL of an image`, column);
}

// Images.

interface Found {
  image: Example["image"];
  row: Row;
}

/** Looks up the image of each row. */
async function look_up(rows: readonly Row[], options: TableOptions): Promise<Found[]> {
  const found: Found[] = [];
  for (let i = 0; i < rows.length; i += LOOKUPS) {
    throw_if_aborted(options.signal, "Looking up images");
    const some = rows.slice(i, i + LOOKUPS);
    found.push(...(await Promise.all(some.map(async (row) => ({ row, image: await image_of(row) })))));
  }
  const missing = found.filter(({ image }) => image === undefined).map(({ row }) => row);
  if (missing.length === 0) return found;
  const error = missing_error(missing, rows, "");
  if (options.missing_images !== "skip") throw error;
  env.warn(`${error.message} Skipped ${missing.length} of ${rows.length} rows.`);
  return found;
}

async function image_of({ source, image }: Row): Promise<Example["image"]> {
  return typeof image === "string" ? source.find(image) : embedded_image(source, image);
}

function embedded_image(
  source: TableSource,
  { column, row, parquet }: Exclude<ImageCell, string>,
): LazyImage {
  const name = `${parquet.name}, row ${row + 1}`;
  const read = async () => {
    const { bytes, path } = await parquet.image(column, row);
    if (bytes !== undefined)
      return new File([bytes as Uint8Array<ArrayBuffer>], path ? `${name} (${path})` : name);
    const file = path === undefined ? undefined : await source.find(path);
    if (file !== undefined) return file;
    const found = path === undefined ? "neither bytes nor a path" : `no bytes, and there is no file ${path}`;
    throw new VitMsnError("NOT_FOUND", `${name}, column ${JSON.stringify(column)}: the cell has ${found}.`, {
      details: { file: parquet.name, column },
    });
  };
  return { name, read };
}

function missing_error(missing: readonly Row[], rows: readonly Row[], names: string): VitMsnError {
  const named = missing.slice(0, MAX_NAMED).map(({ label, image }) => `${label.place} (${String(image)})`);
  const more = missing.length > named.length ? ` and ${missing.length - named.length} more` : "";
  const [{ source, label }] = missing as [Row, ...Row[]];
  const all = missing.length === rows.length ? "all" : `${missing.length} of ${rows.length}`;
  return new VitMsnError(
    "NOT_FOUND",
    `${names || label.file}: the images of ${all} rows don't exist: ${named.join(", ")}${more}. Paths are relative to ${source.where}; ` +
      'correct them, set image_dir, or set missing_images to "skip".',
    { details: { file: label.file, missing: missing.length } },
  );
}

/** Repeated rows are used as they are, since they may be meant as weights; but more likely they are a mistake. */
function warn_of_repeats(found: readonly Found[], names: string): void {
  const first = new Map<string, Row>();
  const repeats: string[] = [];
  for (const { image, row } of found) {
    if (typeof row.image !== "string") continue;
    // Files are new objects for each row.
    const key = typeof image === "string" ? image : `${row.source.table.name}\n${row.image}`;
    const before = first.get(key);
    if (before === undefined) first.set(key, row);
    else
      repeats.push(
        `${place_of(row)} repeats ${place_of(before)}${differ(before, row) ? " with another label" : ""}`,
      );
  }
  if (repeats.length === 0) return;
  const more = repeats.length > MAX_NAMED ? ` and ${repeats.length - MAX_NAMED} more` : "";
  env.warn(
    `${repeats.length} of ${found.length} rows of ${names} name an image that an earlier row names, too; all are used: ` +
      `${repeats.slice(0, MAX_NAMED).join("; ")}${more}.`,
  );
}

function place_of({ label: { file, place } }: Row): string {
  return `${file}, ${place}`;
}

function differ(a: Row, b: Row): boolean {
  return String(a.label.value) !== String(b.label.value);
}
