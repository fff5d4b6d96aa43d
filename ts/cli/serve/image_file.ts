/** An image's file, as it came. */
export interface ImageFile {
  /** What error messages call it. */
  name: string;
  bytes: Uint8Array;
}
