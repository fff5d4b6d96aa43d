// Makes the declarations in dist/types stand alone: tsc leaves the sources' ".ts" endings and the "#name" imports of
// package.json, which point into ts/ and mean nothing in the package that users install.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";

const types = "dist/types";
const { imports } = JSON.parse(await readFile("package.json", "utf8"));

/** The file that a "#name" stands for, as seen from a declaration. @param {string} name @param {string} from */
function relative_to_types(name, from) {
  // Both runtimes' files declare the same.
  const target = join(types, relative("ts", imports[name].default));
  return `./${relative(dirname(from), target).replaceAll("\\", "/")}`.replace("./../", "../");
}

for (const name of await readdir(types, { recursive: true })) {
  if (!name.endsWith(".d.ts")) continue;
  const path = join(types, name);
  const text = await readFile(path, "utf8");
  const standing_alone = text.replace(/(from |import\(|import )"([.#][^"]*)"/g, (_, keyword, specifier) => {
    const file = specifier.startsWith("#") ? relative_to_types(specifier, path) : specifier;
    return `${keyword}"${file.replace(/\.ts$/, ".js")}"`;
  });
  await writeFile(path, standing_alone);
}
