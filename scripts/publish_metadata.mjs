// Prepares package.json and README.md for publication: names the repository, its home page and its issues, and makes the
// README's relative links and images absolute. The registry's page shows the README alone, and a link must lead to the
// version that the page describes. The release workflow knows the repository's address; a clone needn't.
//
//   node scripts/publish_metadata.mjs https://example.org/owner/name v0.1.0
import { readFile, writeFile } from "node:fs/promises";

const [address, tag] = process.argv.slice(2);
if (!address?.startsWith("https://") || tag === undefined) {
  console.error("Usage: node scripts/publish_metadata.mjs https://HOST/OWNER/NAME TAG");
  process.exit(2);
}
const home = address.replace(/(\.git)?\/*$/, "");

const manifest = JSON.parse(await readFile("package.json", "utf8"));
manifest.repository = { type: "git", url: `git+${home}.git` };
manifest.homepage = `${home}#readme`;
manifest.bugs = { url: `${home}/issues` };
await writeFile("package.json", `${JSON.stringify(manifest, null, 2)}\n`);

const readme = await readFile("README.md", "utf8");
const absolute = readme.replace(
  /(!?)(\[[^[\]]*\])\((?!https?:|#)([^)\s]+)\)/g,
  (_, image, text, path) => `${image}${text}(${home}/${image ? "raw" : "blob"}/${tag}/${path})`,
);
await writeFile("README.md", absolute);
