import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readdir, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

export const run = promisify(execFile);
export const root = fileURLToPath(new URL("../../", import.meta.url));

/** A folder in which the packed package is installed. */
export interface PackedProject {
  folder: string;
  remove(): Promise<void>;
}

/**
 * Packs the package and unpacks it into an empty project, as npm would install it. The project's other packages come
 * from this repository, so that nothing is downloaded; so do the examples.
 */
export async function packed_project(packages: readonly string[]): Promise<PackedProject> {
  const folder = await mkdtemp(join(tmpdir(), "vit-msn-packed-"));
  await run("npm", ["pack", "--ignore-scripts", "--pack-destination", folder], { cwd: root });
  const tarball = (await readdir(folder)).find((name) => name.endsWith(".tgz")) as string;
  await run("tar", ["-xzf", tarball], { cwd: folder });
  await mkdir(join(folder, "node_modules"));
  await cp(join(folder, "package"), join(folder, "node_modules/vit-msn"), { recursive: true });
  for (const name of packages) {
    const link = join(folder, "node_modules", name);
    await mkdir(dirname(link), { recursive: true });
    await symlink(join(root, "node_modules", name), link, "junction");
  }
  await cp(join(root, "examples"), join(folder, "examples"), {
    recursive: true,
    filter: (path) => !/[/\\](node_modules|dist)$/.test(path),
  });
  return { folder, remove: () => rm(folder, { recursive: true, force: true }) };
}
