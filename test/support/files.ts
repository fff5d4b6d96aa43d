/** Reads a file of the repository, `path` relative to its root: from disk in Node, from the test server in a browser. */
export async function read_file(path: string): Promise<Uint8Array> {
  return is_browser ? read_from_server(path) : read_from_disk(path);
}

const is_browser = typeof document !== "undefined";

async function read_from_disk(path: string): Promise<Uint8Array> {
  // The name stays out of the import expression, so that the browser's bundler doesn't look for Node's modules.
  const module_name = "node:fs/promises";
  const fs = (await import(/* @vite-ignore */ module_name)) as typeof import("node:fs/promises");
  return new Uint8Array(await fs.readFile(new URL(`../../${path}`, import.meta.url)));
}

async function read_from_server(path: string): Promise<Uint8Array> {
  const response = await fetch(`/${path}`);
  // The test server answers with its HTML page where there is no such file.
  if (!response.ok || response.headers.get("content-type")?.startsWith("text/html")) {
    throw new Error(`The test server has no file ${path} (status ${response.status}).`);
  }
  return new Uint8Array(await response.arrayBuffer());
}
