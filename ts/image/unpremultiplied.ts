import type { Pixels } from "./pixels.ts";

const MAX_TILE = 4096;
let shared_context: WebGL2RenderingContext | undefined;

/**
 * RGBA pixels of a bitmap that was decoded with premultiplyAlpha "none". Going through a WebGL texture keeps the
 * colour of transparent pixels, which a 2D canvas loses.
 *
 * @returns undefined where there is no WebGL.
 */
export async function read_unpremultiplied(bitmap: ImageBitmap): Promise<Pixels | undefined> {
  const gl = webgl_context();
  if (gl === undefined) return undefined;
  const { width, height } = bitmap;
  const data = new Uint8Array(width * height * 4);
  const side = Math.min(MAX_TILE, gl.getParameter(gl.MAX_TEXTURE_SIZE) as number);
  for (let y = 0; y < height; y += side) {
    for (let x = 0; x < width; x += side) {
      const tile = await createImageBitmap(
        bitmap,
        x,
        y,
        Math.min(side, width - x),
        Math.min(side, height - y),
        {
          premultiplyAlpha: "none",
          colorSpaceConversion: "none",
        },
      );
      const is_read = read_tile(gl, tile, data, (y * width + x) * 4, width);
      tile.close();
      if (!is_read) return undefined;
    }
  }
  return { data, width, height, channels: 4 };
}

/** One context for all images: browsers allow only about sixteen. */
function webgl_context(): WebGL2RenderingContext | undefined {
  if (typeof OffscreenCanvas === "undefined") return undefined;
  if (shared_context === undefined || shared_context.isContextLost()) {
    shared_context = new OffscreenCanvas(1, 1).getContext("webgl2") ?? undefined;
  }
  return shared_context;
}

/** Synchronous, so that images read at the same time don't interfere in the context. */
function read_tile(
  gl: WebGL2RenderingContext,
  tile: ImageBitmap,
  data: Uint8Array,
  offset: number,
  row_pixels: number,
): boolean {
  const texture = gl.createTexture();
  const framebuffer = gl.createFramebuffer();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.pixelStorei(gl.PACK_ROW_LENGTH, row_pixels);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, tile);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  gl.readPixels(0, 0, tile.width, tile.height, gl.RGBA, gl.UNSIGNED_BYTE, data, offset);
  const is_read = gl.getError() === gl.NO_ERROR && !gl.isContextLost();
  gl.deleteFramebuffer(framebuffer);
  gl.deleteTexture(texture);
  return is_read;
}
