/** What was written into a folder that is only in memory. */
export type WrittenFiles = Map<string, Uint8Array<ArrayBuffer>>;

/**
 * A folder in memory, with as much of FileSystemDirectoryHandle as saving uses: not every browser lets a page write into
 * folders of the disk, and what is saved here goes into a download.
 */
export function memory_directory(files: WrittenFiles): FileSystemDirectoryHandle {
  const directory = {
    kind: "directory" as const,
    name: "download",
    async getFileHandle(name: string, { create = false } = {}) {
      if (!create && !files.has(name)) throw new DOMException(`There is no file ${name}.`, "NotFoundError");
      return { createWritable: async () => writable(name, files) };
    },
    async *keys() {
      yield* [...files.keys()];
    },
    async removeEntry(name: string) {
      files.delete(name);
    },
  };
  return directory as unknown as FileSystemDirectoryHandle;
}

function writable(name: string, files: WrittenFiles) {
  const pieces: BlobPart[] = [];
  return {
    write: async (piece: Uint8Array<ArrayBuffer>) => void pieces.push(piece.slice()),
    close: async () => void files.set(name, new Uint8Array(await new Blob(pieces).arrayBuffer())),
    abort: async () => {},
  };
}
