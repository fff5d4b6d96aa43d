import { open, rename } from "node:fs/promises";
import { dirname } from "node:path";

/** Puts `text` where a reader finds either all of it or what was there before, even after a power cut. */
export async function write_durably(path: string, text: string): Promise<void> {
  const temporary = `${path}.tmp`;
  const file = await open(temporary, "w");
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename_durably(temporary, path);
}

/** Renames a file whose bytes are on the disk, and waits until its new name is, too. */
export async function rename_durably(from: string, to: string): Promise<void> {
  await rename(from, to);
  await sync_folder(dirname(to));
}

async function sync_folder(path: string): Promise<void> {
  // Windows can't open a folder, and doesn't need it.
  if (process.platform === "win32") return;
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } catch (error) {
    // Some network file systems know no such thing.
    if (!["EINVAL", "ENOTSUP", "ENOSYS"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
  } finally {
    await folder.close();
  }
}

export async function sync_file(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
