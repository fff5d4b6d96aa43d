/** The model that the package carries, beside its JavaScript: a classifier of ten kinds of clothes (28×28 pictures). */
export function default_model(): URL {
  // In a variable, so that bundlers don't take the folder for an asset to inline.
  const base = import.meta.url;
  return new URL("./models/fashion/", base);
}
