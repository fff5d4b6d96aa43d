// Runs a benchmark: bundles its TypeScript (Node 20 can't read it) and imports the result into this process, so that
// node's own flags, as --cpu-prof, work.
//
// Usage: node [NODE_FLAGS] bench/run.mjs peers|runtimes|pages|gpu|attention|masked|kernels|models|profile|training|pretraining|tiles|image|fashion|fashion_pretraining|few_shot|low_shot|similar|serve [OPTIONS]
import { copyFileSync, existsSync, readdirSync } from "node:fs";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const [name = "", ...options] = process.argv.slice(2);
const source = `${root}bench/${name}.ts`;

if (!/^[a-z_]+$/.test(name) || !existsSync(source)) {
  console.error(
    "Usage: node bench/run.mjs peers|runtimes|pages|gpu|attention|masked|kernels|models|profile|training|pretraining|tiles|image|fashion|fashion_pretraining|few_shot|low_shot|similar|serve [OPTIONS]; --help after a name shows its options.",
  );
  process.exit(2);
}
const outfile = `${root}.out/bench/${name}.mjs`;
await build({
  entryPoints: [source],
  outfile,
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  packages: "external",
  sourcemap: "inline",
  logLevel: "warning",
});
// The engine that build.sh made is next to the bundle, as it is in the package.
for (const file of readdirSync(`${root}dist`).filter((file) => /\.wasm$|^thread\.node/.test(file))) {
  copyFileSync(`${root}dist/${file}`, `${root}.out/bench/${file}`);
}
process.argv = [process.execPath, outfile, ...options];
process.chdir(root);
await import(pathToFileURL(outfile).href);
