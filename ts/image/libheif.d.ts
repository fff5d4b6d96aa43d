/** The part of the optional package libheif-js that is used, which has no types. */
declare module "libheif-js/wasm-bundle.js" {
  export interface HeifPlane {
    data: Uint8Array;
    width: number;
    height: number;
    /** Bytes from a row to the next. */
    stride: number;
  }

  export interface HeifLibrary {
    heif_error_Ok: object;
    heif_colorspace_RGB: object;
    heif_chroma_interleaved_RGBA: object;
    heif_context_alloc(): object;
    heif_context_free(context: object): void;
    heif_context_read_from_memory(context: object, bytes: Uint8Array): object;
    heif_js_context_get_primary_image_handle(context: object): object;
    heif_image_handle_get_width(handle: object): number;
    heif_image_handle_get_height(handle: object): number;
    heif_image_handle_release(handle: object): void;
    heif_js_decode_image2(
      handle: object,
      colorspace: object,
      chroma: object,
    ): Promise<{ image: object; channels: readonly HeifPlane[] }>;
    heif_image_release(image: object): void;
  }

  const library: HeifLibrary;
  export default library;
}
