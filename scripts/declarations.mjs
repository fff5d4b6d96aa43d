// Makes the declarations in dist/types self-contained: tsc leaves the sources' ".ts" endings and the "#name" imports of
// package.json, which point into ts/ and mean nothing in the package that users install, and global types that a user's
// TypeScript may not know, which platform_types.ts replaces.
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

const PLATFORM = "platform_types.d.ts";
const platform = await readFile(join(types, PLATFORM), "utf8");
const platform_names = [...platform.matchAll(/^export (?:interface|type) (\w+)/gm)].map(([, name]) =>
  String(name),
);

/**
 * A declaration with the platform's types imported, where it uses any.
 * @param {string} text @param {string} path
 */
function with_platform_types(text, path) {
  const code = text.replaceAll("WebAssembly.Module", "WebAssemblyModule");
  const bare = code.replace(/\/\*.*?\*\/|"[^"\n]*"/gs, "");
  const used = platform_names.filter((name) => new RegExp(`\\b${name}\\b`).test(bare));
  if (used.length === 0) return code;
  const file = relative(dirname(path), join(types, "platform_types.js")).replaceAll("\\", "/");
  return `import type { ${used.join(", ")} } from "${file.startsWith(".") ? file : `./${file}`}";\n${code}`;
}

for (const name of await readdir(types, { recursive: true })) {
  if (!name.endsWith(".d.ts")) continue;
  const path = join(types, name);
  const text = await readFile(path, "utf8");
  const standing_alone = text.replace(/(from |import\(|import )"([.#][^"]*)"/g, (_, keyword, specifier) => {
    const file = specifier.startsWith("#") ? relative_to_types(specifier, path) : specifier;
    return `${keyword}"${file.replace(/\.ts$/, ".js")}"`;
  });
  await writeFile(path, name === PLATFORM ? text : with_platform_types(standing_alone, path));
}
