import { VitMsnError } from "./errors.ts";

/**
 * The model bundled with the package, next to its JavaScript: a classifier of ten kinds of clothes (28×28 images). Each
 * file is named in a form that bundlers recognise, so that they copy it into the app.
 */
export function default_model(): Record<string, URL> {
  return {
    "config.json": new URL("./models/fashion/config.json", import.meta.url),
    "preprocessor_config.json": new URL("./models/fashion/preprocessor_config.json", import.meta.url),
    "model.safetensors": new URL("./models/fashion/model.safetensors", import.meta.url),
  };
}

/** A loading error, with what to do about it. */
export function explain_missing(error: unknown): unknown {
  if (!(error instanceof VitMsnError) || error.code !== "NOT_FOUND") return error;
  return new VitMsnError(
    error.code,
    `The bundled model isn't next to the app's JavaScript: copy node_modules/vit-msn/dist/models there (esbuild and Rollup don't), ` +
      `or in Vite's dev server set optimizeDeps.exclude to ["vit-msn"]. ${error.message}`,
    { cause: error, details: { ...error.details } },
  );
}
