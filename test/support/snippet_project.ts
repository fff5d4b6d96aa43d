import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath, pathToFileURL } from "node:url";
import sharp from "sharp";
import { ViTMSNModel } from "vit-msn";
import { tar_member } from "./tar.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const IMAGES = join(root, "models/fashion/pictures");
const CONTENT_TYPES: Record<string, string> = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};
const ISOLATED = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
};

/**
 * A user's project in which the documentation's code runs: the package installed, some images, and a hub on this machine
 * that has one small model by every name. The server also serves the project to browsers, cross-origin isolated.
 */
export class SnippetProject {
  readonly folder: string;
  /** Of the newest `vit-msn serve`. */
  server_origin = "";
  readonly #server: Server;
  readonly #served: ChildProcess[] = [];

  static async make(): Promise<SnippetProject> {
    const folder = await mkdtemp(join(tmpdir(), "vit-msn-docs-"));
    await writeFile(join(folder, "package.json"), '{ "private": true, "type": "module" }');
    await mkdir(join(folder, "node_modules/.bin"), { recursive: true });
    await symlink(root, join(folder, "node_modules/vit-msn"), "junction");
    await symlink(join(root, "dist/cli.js"), join(folder, "node_modules/.bin/vit-msn"));
    await write_images(folder);
    await write_backbone(join(folder, "hub"));
    const project = new SnippetProject(folder);
    await new Promise<void>((resolve) => project.#server.listen(0, "127.0.0.1", resolve));
    await writeFile(join(folder, "settings.mjs"), project.settings);
    return project;
  }

  private constructor(folder: string) {
    this.folder = folder;
    this.#server = createServer(async ({ url = "/" }, response) => {
      const path = decodeURIComponent(new URL(url, "http://localhost").pathname);
      const body = await readFile(this.#file_of(path)).catch(() => undefined);
      const type = { "content-type": CONTENT_TYPES[extname(path)] ?? "application/octet-stream" };
      response.writeHead(body === undefined ? 404 : 200, { ...type, ...ISOLATED }).end(body);
    });
  }

  /** Any repository of the hub is the one model. */
  #file_of(path: string): string {
    const of_hub = /^\/[\w.-]+\/[\w.-]+\/resolve\/[^/]+\/(.+)$/.exec(path)?.[1];
    return join(this.folder, of_hub === undefined ? path : `hub/${of_hub}`);
  }

  get origin(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** What a snippet runs after: the package looks for the hub here, and caches downloads in the project. */
  get settings(): string {
    const cache = JSON.stringify(join(this.folder, "cache"));
    return (
      `import { env } from "vit-msn";\nenv.remote_host = ${JSON.stringify(this.origin)};\n` +
      `if (!globalThis.document) env.cache_dir = ${cache};\n`
    );
  }

  /** For child processes: any of them that runs JavaScript runs the settings first. */
  get variables(): NodeJS.ProcessEnv {
    const settings = pathToFileURL(join(this.folder, "settings.mjs")).href;
    return { ...process.env, NODE_OPTIONS: `--import=${settings}`, NO_COLOR: "1" };
  }

  /** Starts `vit-msn serve` with these arguments, but at a free port, and waits until it listens. */
  async serve(args: readonly string[]): Promise<void> {
    const command = [join(root, "dist/cli.js"), ...args, "--port", "0"];
    const child = spawn(process.execPath, command, {
      cwd: this.folder,
      env: this.variables,
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#served.push(child);
    let output = "";
    for await (const line of createInterface({ input: child.stderr })) {
      output += `${line}\n`;
      const address = /listening at (http:\S+):/.exec(line)?.[1];
      if (address === undefined) continue;
      this.server_origin = address;
      return;
    }
    throw new Error(`vit-msn ${args.join(" ")} doesn't listen: ${output}`);
  }

  async remove(): Promise<void> {
    for (const child of this.#served) {
      child.kill("SIGINT");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    }
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
    await rm(this.folder, { recursive: true, force: true });
  }
}

async function write_images(folder: string): Promise<void> {
  const [boot, bag] = ["9-ankle-boot", "8-bag"].map((name) => join(IMAGES, `${name}.png`)) as [
    string,
    string,
  ];
  await cp(join(root, "test/fixtures/original_checkpoint.pth.tar"), join(folder, "original.pth.tar"));
  await cp(boot, join(folder, "boot.png"));
  await cp(bag, join(folder, "bag.png"));
  const image_of = { cat: boot, dog: bag };
  for (const [name, source] of Object.entries(image_of)) {
    await mkdir(join(folder, "pets", name), { recursive: true });
    const jpeg = (shade: number) => sharp(source).resize(64).linear(1, shade).jpeg().toBuffer();
    for (const n of [1, 2, 3, 4, 5, 6])
      await writeFile(join(folder, "pets", name, `${n}.jpg`), await jpeg(4 * n));
    await writeFile(join(folder, `${name}.jpg`), await jpeg(2));
  }
  await cp(join(folder, "cat.jpg"), join(folder, "photo.jpg"));
  for (const n of [1, 2]) await cp(join(folder, `pets/cat/${n}.jpg`), join(folder, `mug${n}.jpg`));
  for (const n of [1, 2, 3]) await cp(join(folder, `pets/dog/${n}.jpg`), join(folder, `cat${n}.jpg`));
  for (const name of ["a", "b"]) await cp(join(folder, "dog.jpg"), join(folder, `${name}.jpg`));
  for (const name of ["photos", "more/2026"])
    await cp(join(folder, "pets/cat"), join(folder, name), { recursive: true });
  await mkdir(join(folder, "shards"));
  const member = tar_member("000.jpg", await readFile(join(folder, "dog.jpg")));
  await writeFile(join(folder, "shards/0.tar"), Buffer.concat([member, Buffer.alloc(1024)]));
}

/** The bundled model without its head, as the hub has backbones. */
async function write_backbone(folder: string): Promise<void> {
  const fashion = join(root, "models/fashion");
  const model = await ViTMSNModel.from_pretrained(fashion, { device: "wasm" });
  await model.save_pretrained(folder);
  await model.dispose();
  await cp(join(fashion, "preprocessor_config.json"), join(folder, "preprocessor_config.json"));
}
