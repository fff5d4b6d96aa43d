// The origin's private file system in memory, for browsers whose own can't be written: WebKitGTK's test profile has none.

class MemoryFile {
  readonly kind = "file";
  readonly name: string;
  #bytes = new Uint8Array();

  constructor(name: string) {
    this.name = name;
  }

  async getFile(): Promise<File> {
    return new File([this.#bytes], this.name);
  }

  async createWritable() {
    const parts: BlobPart[] = [];
    return {
      write: async (part: BlobPart) => void parts.push(part instanceof Uint8Array ? part.slice() : part),
      close: async () => {
        this.#bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
      },
      abort: async () => {},
    };
  }

  async isSameEntry(other: unknown): Promise<boolean> {
    return other === this;
  }
}

class MemoryDirectory {
  readonly kind = "directory";
  readonly name: string;
  readonly #entries = new Map<string, MemoryFile | MemoryDirectory>();

  constructor(name: string) {
    this.name = name;
  }

  async #get(name: string, kind: "file" | "directory", create: boolean) {
    const found = this.#entries.get(name);
    if (found && found.kind !== kind) throw new DOMException("It is of another kind.", "TypeMismatchError");
    if (found) return found;
    if (!create) throw new DOMException(`There is no ${name}.`, "NotFoundError");
    const made = kind === "file" ? new MemoryFile(name) : new MemoryDirectory(name);
    this.#entries.set(name, made);
    return made;
  }

  getFileHandle(name: string, { create = false } = {}) {
    return this.#get(name, "file", create);
  }

  getDirectoryHandle(name: string, { create = false } = {}) {
    return this.#get(name, "directory", create);
  }

  async resolve(other: unknown): Promise<string[] | null> {
    if (other === this) return [];
    for (const [name, entry] of this.#entries) {
      const below =
        entry === other ? [] : entry instanceof MemoryDirectory ? await entry.resolve(other) : null;
      if (below !== null) return [name, ...below];
    }
    return null;
  }

  async removeEntry(name: string): Promise<void> {
    if (!this.#entries.delete(name)) throw new DOMException(`There is no ${name}.`, "NotFoundError");
  }

  async *entries() {
    yield* [...this.#entries];
  }

  async *keys() {
    yield* [...this.#entries.keys()];
  }
}

const root = new MemoryDirectory("");
const can_write = "createWritable" in (globalThis.FileSystemFileHandle?.prototype ?? {});
if (!can_write) {
  const value = { getDirectory: async () => root };
  Object.defineProperty(navigator, "storage", { configurable: true, value });
}
