import { save_files } from "../../ts/loading/save.web.ts";

/** Saves files twice and is aborted the third time, where there is no createWritable; posts what is in the folder of that name. */
globalThis.onmessage = async ({ data: name }: MessageEvent<string>) => {
  Reflect.deleteProperty(FileSystemFileHandle.prototype, "createWritable");
  const root = await navigator.storage.getDirectory();
  const directory = await root.getDirectoryHandle(name, { create: true });
  const weights = (text: string) =>
    (async function* () {
      for (const word of text.split(/(?= )/)) yield new TextEncoder().encode(word);
    })();
  await save_files(directory, {
    "config.json": '{"a":1000}',
    "weights.bin": weights("older and longer weights"),
  });
  await save_files(directory, { "config.json": '{"a":2}', "weights.bin": weights("new weights") });
  const controller = new AbortController();
  const progress_callback = () => controller.abort();
  const { code } = await save_files(
    directory,
    { "weights.bin": weights("never seen"), "other.bin": weights("nor this") },
    { signal: controller.signal, progress_callback },
  ).then(
    () => ({ code: "none" }),
    (error) => error,
  );
  const files: Record<string, string> = {};
  for await (const [file, handle] of directory.entries())
    files[file] = await (await (handle as FileSystemFileHandle).getFile()).text();
  await root.removeEntry(name, { recursive: true });
  globalThis.postMessage({ code, files });
};
