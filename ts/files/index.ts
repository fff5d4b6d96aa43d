// Functions of files, waiting and checks that the command line shares with the package; the package doesn't export them.

export { crc32 } from "#crc32";
export { is_count } from "../is_count.ts";
export { sleep } from "../sleep.ts";
export { lstat, open, readdir, readFile, readlink, rm, stat } from "./disk.ts";
export {
  type Digest,
  digest_of,
  hash_file,
  is_temporary,
  make_folder,
  rename_durably,
  sync_folder,
  temporary_path,
  write_all,
  write_durably,
  write_file,
} from "./durable.ts";
export { is_code } from "./errors.ts";
export { decode_name, encode_name, is_hidden_member } from "./file_names.ts";
export { type Lock, with_lock, with_locked_folder } from "./lock.ts";
export { SkippedFiles } from "./skipped_files.ts";
export { type ByteSource, DamagedArchive, type TarMember, tar_members } from "./tar_reader.ts";
export { as_utf8 } from "./text_encoding.ts";
export { walk } from "./walk.ts";
export { locate_data, read_directory, type ZipEntry, type ZipFile } from "./zip_directory.ts";
