/** The file system calls behind durable writes, in one place, so that tests can replace them by a faulty disk. */
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
