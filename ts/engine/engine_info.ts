/** The engine's binaries: with plain or relaxed SIMD, for one thread or for several on a shared memory. */
export type Level = "simd128" | "relaxed" | "simd128+threads" | "relaxed+threads";

/** Which engine runs a model, and why no faster one does. */
export interface EngineInfo {
  /** What the engine's WebAssembly was built for. */
  readonly level: Level | "webgpu";
  /** Threads that compute on the CPU; with WebGPU one, which only records. */
  readonly threads: number;
  /** Whether it computes in a Worker. */
  readonly worker: boolean;
  /** One sentence for each reason why it runs where it does: no GPU, no better level, no more threads; else empty. */
  readonly reasons: readonly string[];
  /** With WebGPU, what computes. */
  readonly adapter?: AdapterInfo;
}

/** A GPU, or software that emulates one. */
export interface AdapterInfo {
  /** The driver's name for it; browsers may report only the vendor. */
  readonly name: string;
  readonly vendor: string;
  readonly architecture: string;
  /** Whether it is software that runs on the CPU. */
  readonly is_software: boolean;
  /** Features that kernels use: "shader-f16", "subgroups", "timestamp-query". */
  readonly features: readonly string[];
}
