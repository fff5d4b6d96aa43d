import { cp } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const models = fileURLToPath(new URL("dist/models", import.meta.resolve("vit-msn/package.json")));

/** Lays the page and the model that the package carries beside the bundle. @type {import("webpack").WebpackPluginInstance} */
const copy_files = {
  apply(compiler) {
    compiler.hooks.afterEmit.tapPromise("copy-files", async () => {
      await cp("index.html", `${compiler.outputPath}/index.html`);
      await cp(models, compiler.outputPath, { recursive: true });
    });
  },
};

export default {
  mode: "production",
  entry: "./main.js",
  output: { module: true, filename: "[name].js", chunkFilename: "[name].js", clean: true },
  experiments: { outputModule: true },
  performance: { hints: false }, // the engine is 290 kB
  plugins: [copy_files],
};
