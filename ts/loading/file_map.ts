import { VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
import { split_credentials } from "../network/credentials.ts";
import { data_url_bytes } from "../network/data_url.ts";
import { show_url } from "../network/show_url.ts";
import { bytes_of } from "../options.ts";
import { blob_file, memory_file } from "./bytes.ts";
import { open_remote, type RemoteOptions } from "./hub.ts";
import type { FileMap, LoadOptions, ModelSource, RandomAccessFile } from "./types.ts";

/** The type of open_source, which imports this file. */
type OpenSource = (folder: string, options: LoadOptions) => Promise<ModelSource>;

/** Opens a file of a map; undefined if the map has none of that name. */
export async function open_mapped_file(
  files: FileMap,
  file: string,
  remote: RemoteOptions,
  open_source: OpenSource,
): Promise<RandomAccessFile | undefined> {
  const found = find_in_map(files, file);
  if (!is_a(found?.content, "URL")) return found && map_file(found.name, found.content, "The map of files");
  return open_url(found.content, remote, open_source);
}

/**
 * Opens one file by its path or URL.
 * @throws VitMsnError NOT_FOUND, and the errors of open_source.
 */
export async function open_address(
  source: string | URL,
  options: LoadOptions,
  open_source: OpenSource,
): Promise<RandomAccessFile> {
  const address = String(source);
  const cut = address.search(/[^/\\]*$/);
  const [folder, name] = [address.slice(0, cut) || "./", address.slice(cut)];
  const file =
    name === "" ? undefined : await (await open_source(folder, options)).open(decodeURIComponent(name));
  if (file !== undefined) return file;
  throw new VitMsnError("NOT_FOUND", `There is no file ${show_url(address).slice(0, 300)}.`, {
    details: { source: show_url(address) },
  });
}

/** The file of that name, else the only one of that name inside a folder, since a picked folder's names include it. */
function find_in_map(files: FileMap, file: string): { name: string; content: unknown } | undefined {
  const entries = is_a(files, "Map") ? [...files] : Object.entries(files);
  const exact = entries.find(([name]) => name === file);
  const nested = entries.filter(([name]) => name.endsWith(`/${file}`));
  const depth = (name: string) => name.split("/").length;
  const least = nested.reduce((least, [name]) => Math.min(least, depth(name)), Number.POSITIVE_INFINITY);
  const nearest = nested.filter(([name]) => depth(name) === least);
  if (!exact && nearest.length > 1) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `The map of files holds ${nearest.length} files ${file} (${nearest.map(([name]) => name).join(", ")}); pass the files of one model.`,
      { details: { file, names: nearest.map(([name]) => name) } },
    );
  }
  const [name, content] = exact ?? nearest[0] ?? [];
  return name === undefined ? undefined : { name, content };
}

/** A file of a map by its URL; bundlers inline small files as data: URLs. */
async function open_url(
  address: URL,
  remote: RemoteOptions,
  open_source: OpenSource,
): Promise<RandomAccessFile | undefined> {
  if (address.protocol === "data:") return memory_file(show_url(address), data_url_bytes(address.href));
  if (!/^https?:$/.test(address.protocol)) return open_address(address, remote.options, open_source);
  const { url, authorization } = split_credentials(address);
  return open_remote(url, { ...remote, authorization });
}

/** A file over bytes or a Blob. */
export function map_file(name: string, content: unknown, source: string): RandomAccessFile {
  if (is_a(content, "Uint8Array") || is_a(content, "ArrayBuffer")) {
    return memory_file(name, bytes_of(content, name));
  }
  if (is_a(content, "Blob", "File")) return blob_file(name, content);
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${source} must hold Blobs, ArrayBuffers, Uint8Arrays or URLs; ${name} isn't any of these.`,
    {
      details: { file: name },
    },
  );
}
