import type { SkippedFiles } from "../../files/index.ts";
import { RawImage, VitMsnError } from "../../index.ts";
import { is_image_error } from "./errors.ts";
import { type ListedImage, unreadable } from "./listed_image.ts";

/** The largest image in bytes, as for the library's files. Larger members are refused without reading them. */
export const MAX_BYTES = 256 * 1024 * 1024;
/** The longest name of a member, as for paths. */
const MAX_NAME = 4096;

/** What is read of an archive. */
export interface ArchiveReading {
  signal: AbortSignal;
  /** Counts what is skipped. */
  skipped: SkippedFiles;
  /** Whether the next image will be read; if not, its bytes are skipped. */
  is_wanted(): boolean;
}

/** A file in an archive. */
export interface Member {
  name: string;
  /** Bytes of its content. */
  size: number;
  read(): Promise<Uint8Array>;
}

export function short_member(name: string): string {
  return name.length > MAX_NAME ? `${name.slice(0, 100)}…` : name;
}

/** An image of an archive, read if it is wanted. */
export async function image_of(name: string, member: Member, is_wanted: () => boolean): Promise<ListedImage> {
  return is_wanted() ? read_member(name, member) : { name, read: not_read };
}

export async function not_read(): Promise<never> {
  throw new TypeError("An image that wasn't wanted has no bytes.");
}

/** An image of an archive. Its bytes are read now, since the archive isn't read backwards, and is closed at its end. */
export async function read_member(name: string, member: Member): Promise<ListedImage> {
  const fail = (message: string) =>
    unreadable(name, new VitMsnError("INVALID_IMAGE", `${name} ${message}.`, { details: { file: name } }));
  const { size } = member;
  if (size > MAX_BYTES) return fail(`has ${size} bytes, more than the limit of ${MAX_BYTES} for one image`);
  if (member.name.length > MAX_NAME)
    return fail(`has a name of ${member.name.length} characters, more than the limit of ${MAX_NAME}`);
  try {
    const bytes = (await member.read()) as Uint8Array<ArrayBuffer>;
    return { name, read: (options) => RawImage.read(new File([bytes], name), options) };
  } catch (error) {
    if (is_image_error(error)) return unreadable(name, error);
    throw error;
  }
}
