import { env } from "../../env.ts";
import { throw_if_aborted, VitMsnError } from "../../errors.ts";
import { is_hidden_member } from "../../files/file_names.ts";
import { SkippedFiles } from "../../files/skipped_files.ts";
import { type ByteSource, DamagedArchive, type TarMember, tar_members } from "../../files/tar_reader.ts";
import { is_image_name } from "../../image/formats.ts";
import { decode_utf8 } from "../../loading/bytes.ts";
import type { RandomAccessFile } from "../../loading/types.ts";
import { is_record } from "../../options.ts";
import type { Example, LazyImage } from "../data/dataset.ts";
import { LabelledImages } from "../data/labelled_images.ts";
import { split_labels, type TableOptions } from "./image_table.ts";
import { interpret_labels, type LabelCell } from "./labels.ts";
import type { OpenAgain } from "./table.ts";
import { bad_file, bad_row } from "./table_errors.ts";

/** Bytes per read of a shard: the least after a seek to a header, then twice as many each time. */
const [MIN_PIECE, MAX_PIECE] = [4096, 256 * 1024];
/** The largest .cls, .json or other label. */
const MAX_LABEL_BYTES = 16 * 1024 * 1024;

export interface Shard {
  /** For messages. */
  name: string;
  open: OpenAgain;
}

/** An image with its label: the consecutive members of a shard that have a key in common. */
interface Sample {
  shard: Shard;
  key: string;
  /** By what follows the key, such as "jpg" or "left.png". */
  images: Map<string, Pick<TarMember, "name" | "size" | "offset">>;
  texts: Map<string, Uint8Array>;
}

/**
 * The images in WebDataset shards. Each shard is read once, without its images, to index them; an image is then read from its place
 * when it is needed. So examples can be shuffled, split and counted as those of a folder.
 * @throws VitMsnError INVALID_ARGUMENT that names shard and key; UNSUPPORTED for a compressed shard.
 */
export async function images_of_shards(
  shards: readonly Shard[],
  options: TableOptions,
): Promise<LabelledImages> {
  const images: LazyImage[] = [];
  const cells: LabelCell[] = [];
  for (const shard of shards) {
    const keys = new Set<string>();
    const repeated: string[] = [];
    for await (const sample of samples_of(shard, options)) {
      if (keys.has(sample.key)) repeated.push(sample.key);
      keys.add(sample.key);
      images.push(image_of(sample, options));
      cells.push(label_of(sample, options));
    }
    if (keys.size === 0)
      throw bad_file(shard.name, "has no images; expected members such as 0001.jpg and 0001.cls");
    if (repeated.length > 0)
      env.warn(
        `${shard.name}: ${repeated.length} keys occur again, after other members; all are used: ${repeated.slice(0, 10).join(", ")}.`,
      );
  }
  const { classes, labels, problem_type } = interpret_labels(cells, {
    problem_type: options.problem_type,
    classes: options.classes,
    is_text: true,
    is_float: false,
  });
  const examples = images.map(
    (image, i): Example => ({ image, label: labels[i] as NonNullable<Example["label"]> }),
  );
  return new LabelledImages(classes, examples, problem_type);
}

// Reading a shard.

async function* samples_of(shard: Shard, options: TableOptions): AsyncGenerator<Sample> {
  const file = await shard.open();
  const skipped = new SkippedFiles();
  try {
    await refuse_compressed(file, shard.name);
    let sample: Sample | undefined;
    for await (const member of tar_members(new FileBytes(file))) {
      throw_if_aborted(options.signal, `Reading ${shard.name}`);
      if (member.kind === "folder" || is_hidden_member(member.name)) continue;
      if (member.kind !== "file") {
        skipped.add_named("members that aren't files", member.name);
        continue;
      }
      const [key, extension] = key_and_extension(member.name);
      if (sample?.key !== key) {
        if (sample !== undefined) yield sample;
        sample = { shard, key, images: new Map(), texts: new Map() };
      }
      await add_member(sample, extension, member, options);
    }
    if (sample !== undefined) yield sample;
  } catch (error) {
    if (!(error instanceof DamagedArchive)) throw error;
    throw bad_file(
      shard.name,
      `can't be read completely as a tar shard: ${error.message}. Copy it again`,
      error,
    );
  } finally {
    await file.close();
  }
  const summary = skipped.summary();
  if (summary !== undefined) env.warn(`${shard.name}: ${summary}.`);
}

async function refuse_compressed(file: RandomAccessFile, name: string): Promise<void> {
  const [first, second] = await file.read(0, Math.min(2, file.size));
  if (first !== 0x1f || second !== 0x8b) return;
  throw new VitMsnError(
    "UNSUPPORTED",
    `${name} is compressed by gzip, so its images can't be read in any order; decompress it: gunzip <file>.`,
    { details: { file: name } },
  );
}

/** A file's bytes from its start. */
class FileBytes implements ByteSource {
  readonly #file: RandomAccessFile;
  #position = 0;
  #piece = MAX_PIECE;

  constructor(file: RandomAccessFile) {
    this.#file = file;
  }

  async next(): Promise<IteratorResult<Uint8Array, undefined>> {
    const length = Math.min(this.#piece, this.#file.size - this.#position);
    if (length <= 0) return { done: true, value: undefined };
    const value = await this.#file.read(this.#position, length);
    this.#position += length;
    this.#piece = Math.min(2 * this.#piece, MAX_PIECE);
    return { value };
  }

  async skip(count: number): Promise<number> {
    const skipped = Math.min(count, this.#file.size - this.#position);
    this.#position += skipped;
    this.#piece = MIN_PIECE;
    return skipped;
  }
}

/** As in webdataset: the key ends at the first dot of the file's name. */
function key_and_extension(name: string): [key: string, extension: string] {
  const [, key = name, extension = ""] = /^((?:.*\/)?[^/.]+)\.([^/]*)$/s.exec(name) ?? [];
  return [key, extension.toLowerCase()];
}

async function add_member(
  sample: Sample,
  extension: string,
  member: TarMember,
  { image_column_name, label_column_name = "cls" }: TableOptions,
): Promise<void> {
  const { images, texts } = sample;
  if (images.has(extension) || texts.has(extension))
    throw bad(sample, `there are two members .${extension}; remove one`);
  const { name, size, offset } = member;
  const is_label = extension === label_column_name || extension === "json";
  if (image_column_name === undefined ? is_image_name(extension) : extension === image_column_name)
    images.set(extension, { name, size, offset });
  else if (is_label && size > MAX_LABEL_BYTES)
    throw bad(
      sample,
      `.${extension} has ${size} bytes, more than the limit of ${MAX_LABEL_BYTES} for a label`,
    );
  else if (is_label) texts.set(extension, await member.read());
}

// Samples.

function image_of(sample: Sample, { image_column_name }: TableOptions): LazyImage {
  const [image, ...others] = [...sample.images.values()];
  if (others.length > 0)
    throw bad(
      sample,
      `there are several images (${[...sample.images.keys()].join(", ")}); choose one by image_column_name`,
    );
  if (image === undefined)
    throw bad(
      sample,
      `there is no ${image_column_name === undefined ? "image" : `member .${image_column_name}`}`,
    );
  const { size, offset } = image;
  if (offset === undefined) throw bad(sample, "the image is a sparse member; write the shard without holes");
  const name = `${sample.shard.name}/${image.name}`;
  const read = async () => {
    const file = await sample.shard.open();
    try {
      return new File([(await file.read(offset, size)) as Uint8Array<ArrayBuffer>], name);
    } finally {
      await file.close();
    }
  };
  return { name, read };
}

/** The text of .cls or another member, or a value in .json. */
function label_of(sample: Sample, { label_column_name, label_separator }: TableOptions): LabelCell {
  const text = sample.texts.get(label_column_name ?? "cls");
  const cell = { file: sample.shard.name, place: `key ${sample.key}`, column: label_column_name ?? "cls" };
  if (text !== undefined && label_column_name !== "json")
    return { ...cell, value: split_labels(decode(sample, text), label_separator) };
  const names = label_column_name === undefined ? ["label", "labels"] : [label_column_name];
  const values = json_of(sample);
  const column = names.find((name) => Object.hasOwn(values, name));
  if (column !== undefined) return { ...cell, column, value: split_labels(values[column], label_separator) };
  const found = sample.texts.has("json")
    ? `.json has only ${Object.keys(values).slice(0, 20).join(", ")}`
    : "there is no .json";
  throw bad(
    sample,
    `there is no .${label_column_name ?? "cls"}, and ${found}; name the label by label_column_name`,
  );
}

function json_of(sample: Sample): Readonly<Record<string, unknown>> {
  const bytes = sample.texts.get("json");
  if (bytes === undefined) return {};
  let value: unknown;
  try {
    value = JSON.parse(decode(sample, bytes));
  } catch (cause) {
    if (cause instanceof VitMsnError) throw cause;
    throw bad(sample, `.json isn't valid JSON (${(cause as Error).message})`);
  }
  if (is_record(value)) return value;
  throw bad(sample, ".json must be a JSON object");
}

function decode(sample: Sample, bytes: Uint8Array): string {
  const text = decode_utf8(bytes);
  if (text === undefined) throw bad(sample, "the label isn't UTF-8");
  return text.trim();
}

function bad({ shard, key }: Sample, message: string): VitMsnError {
  return bad_row(shard.name, `key ${key}`, message);
}
