/** The model bundled with the package, next to its JavaScript: a classifier of ten kinds of clothes (28×28 images). */
export function default_model(): URL {
  // Not new URL(path, import.meta.url): server bundlers treat that as an asset, which a folder can't be.
  const url = new URL(import.meta.url);
  url.pathname = url.pathname.replace(/[^/]*$/, "models/fashion/");
  return url;
}

/** A loading error, with what to do about it. */
export function explain_missing(error: unknown): unknown {
  return error;
}
