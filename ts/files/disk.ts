/** All that what is written durably asks of the file system, in one place: tests put a disk with faults in its stead. */
export {
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  stat,
} from "node:fs/promises";
