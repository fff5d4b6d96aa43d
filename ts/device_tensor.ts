import { numel } from "./dims.ts";
import type { Engine, TensorHandle } from "./engine/engine.ts";
import { VitMsnError } from "./errors.ts";
import { Tensor } from "./tensor.ts";

/** The engine and handle that hold a tensor's elements. */
interface Place {
  engine: Engine;
  handle: TensorHandle;
}

/** Frees the memory of a tensor that was garbage-collected. */
const forgotten = new FinalizationRegistry<Place>(({ engine, handle }) => engine.free(handle));

/**
 * A float32 tensor on a model's GPU, as returned by ViTImageProcessor with `{ device: model }`. That model's forward pass
 * uses it there; other models get a copy. It lives until dispose() or until its model is disposed.
 */
export class DeviceTensor extends Tensor<"float32"> {
  #place: Place | undefined;

  /** @internal Takes over the handle. */
  constructor(engine: Engine, handle: TensorHandle, dims: readonly number[]) {
    super("float32", new Float32Array(0), [0]);
    Object.defineProperties(this, {
      dims: { value: [...dims], enumerable: true },
      data: { get: not_here, enumerable: false },
    });
    this.#place = { engine, handle };
    forgotten.register(this, this.#place, this);
  }

  override get location(): "cpu" | "webgpu" {
    return "webgpu";
  }

  /** Number of elements. */
  override get size(): number {
    return numel(this.dims);
  }

  /** @internal The handle, if the tensor is this engine's. @throws VitMsnError DISPOSED. */
  on(engine: Engine): TensorHandle | undefined {
    const place = this.#checked();
    return place.engine === engine ? place.handle : undefined;
  }

  /** Copies the elements out of the GPU. @throws VitMsnError DISPOSED or ENGINE_DEAD. */
  override async getData(): Promise<Float32Array> {
    const { engine, handle } = this.#checked();
    return engine.read(handle);
  }

  /** Frees its memory. Forwards that were already called aren't affected. May be called twice. */
  override dispose(): void {
    if (this.#place === undefined) return;
    this.#place.engine.free(this.#place.handle);
    this.#place = undefined;
    forgotten.unregister(this);
  }

  #checked(): Place {
    if (this.#place !== undefined) return this.#place;
    throw new VitMsnError("DISPOSED", "This tensor was disposed.");
  }
}

function not_here(): never {
  throw new VitMsnError(
    "UNSUPPORTED",
    "This tensor is on the GPU: `await tensor.getData()` copies its elements; `data` is for tensors in JavaScript memory.",
  );
}
