/** A folder of a test: on disk in Node, in the origin's private file system in a browser. */
export interface TemporaryDirectory {
  /** What save_pretrained takes. */
  target: string | FileSystemDirectoryHandle;
  read_files(): Promise<Record<string, Uint8Array>>;
  /** The names of what is in it. */
  list(): Promise<string[]>;
  /** Writes a file below it, "folder/…/name". */
  write(path: string, bytes: Uint8Array): Promise<void>;
  /** Rewrites a file of a folder in it. */
  change(folder: string, file: string, change: (bytes: Uint8Array) => Uint8Array): Promise<void>;
  remove(): Promise<void>;
}

export async function temporary_directory(): Promise<TemporaryDirectory> {
  return typeof document === "undefined" ? on_disk() : in_browser();
}

async function on_disk(): Promise<TemporaryDirectory> {
  // The names stay out of the import expressions, so that the browser's bundler doesn't look for Node's modules.
  const [fs_name, os_name] = ["node:fs/promises", "node:os"];
  const fs = (await import(/* @vite-ignore */ fs_name)) as typeof import("node:fs/promises");
  const os = (await import(/* @vite-ignore */ os_name)) as typeof import("node:os");
  const target = await fs.mkdtemp(`${os.tmpdir()}/vit-msn-test-`);
  const read = async (name: string) =>
    [name, new Uint8Array(await fs.readFile(`${target}/${name}`))] as const;
  return {
    target,
    read_files: async () => Object.fromEntries(await Promise.all((await fs.readdir(target)).map(read))),
    list: () => fs.readdir(target),
    write: async (path, bytes) => {
      await fs.mkdir(`${target}/${path}`.replace(/\/[^/]*$/, ""), { recursive: true });
      await fs.writeFile(`${target}/${path}`, bytes);
    },
    change: async (folder, file, change) => {
      const path = `${target}/${folder}/${file}`;
      await fs.writeFile(path, change(new Uint8Array(await fs.readFile(path))));
    },
    remove: () => fs.rm(target, { recursive: true }),
  };
}

/** Chromium's own file behind a stream that writes. It is removed some time after the stream was aborted. */
const IN_PROGRESS = /\.crswap$/;

async function in_browser(): Promise<TemporaryDirectory> {
  const root = await navigator.storage.getDirectory();
  const name = `vit-msn-test-${crypto.randomUUID()}`;
  const target = await root.getDirectoryHandle(name, { create: true });
  return {
    target,
    read_files: async () => {
      const files: Record<string, Uint8Array> = {};
      for await (const [file, handle] of target.entries()) {
        if (handle.kind !== "file" || IN_PROGRESS.test(file)) continue;
        const blob = await (handle as FileSystemFileHandle).getFile();
        files[file] = new Uint8Array(await blob.arrayBuffer());
      }
      return files;
    },
    list: async () => {
      const names: string[] = [];
      for await (const entry of target.keys()) if (!IN_PROGRESS.test(entry)) names.push(entry);
      return names;
    },
    write: async (path, bytes) => {
      const folders = path.split("/");
      const file = folders.pop() as string;
      let folder = target;
      for (const name of folders) folder = await folder.getDirectoryHandle(name, { create: true });
      const stream = await (await folder.getFileHandle(file, { create: true })).createWritable();
      await stream.write(bytes as Uint8Array<ArrayBuffer>);
      await stream.close();
    },
    change: async (folder, file, change) => {
      const handle = await (await target.getDirectoryHandle(folder)).getFileHandle(file);
      const bytes = change(new Uint8Array(await (await handle.getFile()).arrayBuffer()));
      const stream = await handle.createWritable();
      await stream.write(bytes as Uint8Array<ArrayBuffer>);
      await stream.close();
    },
    remove: () => root.removeEntry(name, { recursive: true }),
  };
}
