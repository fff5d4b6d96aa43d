/**
 * The engine's binaries: with plain or relaxed SIMD, or relaxed SIMD that V8 joins into vectors of 256 bits; for one
 * thread or for several with shared memory.
 */
export type Level = `${"simd128" | "relaxed" | "relaxed-wide"}${"" | "+threads"}`;

/**
 * How the processor's dot product of bytes takes its second operand. int8 layers use it where its sums are exact:
 * "unsigned" (x86 with AVX-VNNI) and "signed" (arm64). Where they aren't ("saturating", other x86) or the engine has no
 * relaxed SIMD ("none"), they use the dot product of int16, and give the same bits.
 */
export type ByteDot = "unsigned" | "signed" | "saturating" | "none";

/** Which engine runs a model, and why not a faster one. */
export interface EngineInfo {
  /** What the engine's WebAssembly was built for. */
  readonly level: Level | "webgpu";
  /** Threads that compute on the CPU; on WebGPU there is one, which only records. */
  readonly threads: number;
  /** Whether it runs in a Worker. */
  readonly worker: boolean;
  /** On the CPU, which dot product int8 layers have. */
  readonly byte_dot?: ByteDot;
  /** Why it isn't faster, one sentence for each reason: no GPU, no better level, no more threads. May be empty. */
  readonly reasons: readonly string[];
  /** On WebGPU, the adapter that computes. */
  readonly adapter?: AdapterInfo;
}

/** A GPU, or software that emulates one. */
export interface AdapterInfo {
  /** The driver's name for the adapter; browsers may report only the vendor. */
  readonly name: string;
  readonly vendor: string;
  readonly architecture: string;
  /** Whether the adapter is software that runs on the CPU. */
  readonly is_software: boolean;
  /** Features that kernels use: "shader-f16", "subgroups", "timestamp-query". */
  readonly features: readonly string[];
}
