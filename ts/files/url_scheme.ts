import { VitMsnError } from "../errors.ts";
import { show_url } from "../network/show_url.ts";

/** The error for a path that is a URL of an unsupported scheme, such as s3://bucket/key; undefined for other paths. */
export function unsupported_scheme(path: string): VitMsnError | undefined {
  const scheme = /^([a-z][a-z\d+.-]+):\/\//i.exec(path)?.[1];
  if (scheme === undefined || /^(?:https?|file)$/i.test(scheme)) return undefined;
  return new VitMsnError(
    "UNSUPPORTED",
    `${show_url(path)}: the URL scheme ${scheme}:// isn't supported; download the files, or use an https:// URL.`,
    { details: { scheme } },
  );
}
