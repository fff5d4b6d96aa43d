// Image functions that the command line shares with the package; the package doesn't export them.
export { type ImageHeader, read_header } from "./header.ts";
export { prepare_image } from "./prepare_image.ts";
