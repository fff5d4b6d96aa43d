/**
 * Stand-ins for the types of WebGPU, pages and WebAssembly, which Node's types and older TypeScript versions lack.
 * scripts/declarations.mjs makes the declarations use these in place of the globals; the real types are assignable to
 * them.
 */
export interface GPU {
  requestAdapter(options?: never): Promise<unknown>;
}
export interface GPUDevice {
  readonly features: object;
  readonly limits: object;
  readonly queue: object;
  createComputePipeline(descriptor: never): unknown;
}
export type GPUCopyExternalImageSource = object;

export type WebAssemblyModule = object;
export type BufferSource = ArrayBufferView | ArrayBuffer;
export type RequestRedirect = "error" | "follow" | "manual";

export interface HTMLImageElement {
  readonly naturalWidth: number;
  readonly naturalHeight: number;
}
export interface HTMLVideoElement {
  readonly videoWidth: number;
  readonly videoHeight: number;
}
export interface HTMLCanvasElement {
  readonly width: number;
  readonly height: number;
  toBlob(callback: never): unknown;
}
export interface OffscreenCanvas {
  readonly width: number;
  readonly height: number;
  convertToBlob(options?: never): unknown;
}
export interface ImageBitmap {
  readonly width: number;
  readonly height: number;
  close(): void;
}
export interface VideoFrame {
  readonly displayWidth: number;
  readonly displayHeight: number;
  close(): void;
}
export interface ImageData {
  readonly data: ArrayBufferView;
  readonly width: number;
  readonly height: number;
}

export interface FileSystemDirectoryHandle {
  readonly kind: "directory";
  readonly name: string;
  getFileHandle(name: string, options?: never): Promise<unknown>;
  getDirectoryHandle(name: string, options?: never): Promise<unknown>;
}
