// Functions of images and their downloads that the command line shares with the package; the package doesn't export them.
export { status_error } from "../network/status_error.ts";
export { type ImageHeader, read_header } from "./header.ts";
export { prepare_image } from "./prepare_image.ts";
