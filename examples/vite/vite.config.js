import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  // The folder of the model that the package carries: public/ with models of your own does as well.
  publicDir: fileURLToPath(new URL("dist/models", import.meta.resolve("vit-msn/package.json"))),
  // The dev server must leave the package where it is: it finds its engine's files next to its own.
  optimizeDeps: { exclude: ["vit-msn"] },
  // The engine's Worker loads WebGPU only where it is used.
  worker: { format: "es" },
});
