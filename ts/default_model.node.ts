import { VitMsnError } from "./errors.ts";

/** The model bundled with the package, next to its JavaScript: a classifier of ten kinds of clothes (28×28 images). */
export function default_model(): URL {
  // Not new URL(path, import.meta.url): server bundlers treat that as an asset, which a folder can't be.
  if (!URL.canParse(import.meta.url)) {
    throw new VitMsnError(
      "NOT_FOUND",
      "The bundled model can't be found, because a bundler removed import.meta.url: keep vit-msn outside of the bundle, " +
        "or give the folder node_modules/vit-msn/dist/models/fashion.",
    );
  }
  const url = new URL(import.meta.url);
  url.pathname = url.pathname.replace(/[^/]*$/, "models/fashion/");
  return url;
}

/** A loading error, with what to do about it. */
export function explain_missing(error: unknown): unknown {
  return error;
}
