/** The formats of image files that are decoded (TIFF only in Node), each with its file name extensions. */
export const EXTENSIONS = {
  PNG: ["png", "apng"],
  JPEG: ["jpg", "jpeg", "jpe", "jfif"],
  WebP: ["webp"],
  AVIF: ["avif"],
  GIF: ["gif"],
  BMP: ["bmp", "dib"],
  PNM: ["ppm", "pgm", "pbm", "pnm"],
  TIFF: ["tif", "tiff"],
} as const;

/** HEIC is only read in Node, where libheif-js is installed. */
export type ImageFormat = keyof typeof EXTENSIONS | "HEIC";

/** The formats that this package reads itself, alike in every runtime. */
export const OWN_FORMATS: readonly ImageFormat[] = ["PNG", "GIF", "BMP", "PNM"];

/** The extensions that a folder's image files are recognised by, in lower case and without a dot. */
export const IMAGE_EXTENSIONS: readonly string[] = Object.values(EXTENSIONS).flat();

/** Whether a file is an image by the extension of its name, in upper or lower case. */
export function is_image_name(name: string): boolean {
  return IMAGE_EXTENSIONS.includes(name.slice(name.lastIndexOf(".") + 1).toLowerCase());
}
