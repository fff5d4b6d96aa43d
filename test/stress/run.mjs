// Bundles the stress test (Node 20 can't read TypeScript) and runs it on the package in dist/.
// Usage: node test/stress/run.mjs [OPTIONS]; --help shows them.
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("../..", import.meta.url));
const outfile = `${root}.out/stress.mjs`;
await build({
  entryPoints: [`${root}test/stress/main.ts`],
  outfile,
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  packages: "external",
  external: ["vit-msn"], // else tsconfig.json's paths would lead to its source
  sourcemap: "inline",
  logLevel: "warning",
});
await import(pathToFileURL(outfile).href);
