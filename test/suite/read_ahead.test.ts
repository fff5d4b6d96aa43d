import { Tensor } from "vit-msn";
import { describe, expect, test } from "vitest";
import type { ImageProcessorOutput } from "../../ts/image/image_processing_vit.ts";
import { read_ahead } from "../../ts/pipelines/ahead.ts";

/** A batch of `floats` elements, whose first is its first image's number. */
function batch_of(images: readonly unknown[], floats: number, disposed: number[]): ImageProcessorOutput {
  const first = images[0] as number;
  const pixel_values = new Tensor("float32", new Float32Array(floats).fill(first), [floats]);
  pixel_values.dispose = () => void disposed.push(first);
  return { pixel_values, original_sizes: [], reshaped_input_sizes: [] };
}

function recorder(floats = 1) {
  const [started, disposed]: [number[], number[]] = [[], []];
  const prepare = async (images: readonly unknown[]) => {
    started.push(images[0] as number);
    return batch_of(images, floats, disposed);
  };
  return { started, disposed, prepare };
}

const NUMBERS = [0, 1, 2, 3, 4] as never[];

describe("a list's batches", () => {
  test("come in order, and one more is prepared while the consumer works", async () => {
    const { started, prepare } = recorder();
    const seen: number[] = [];
    for await (const { pixel_values } of read_ahead(NUMBERS, 2, prepare)) {
      seen.push(pixel_values.data[0] as number);
      expect(started).toEqual([0, 2, 4].slice(0, seen.length + 1));
    }
    expect(seen).toEqual([0, 2, 4]);
  });

  test("of more than 64 MiB come one at a time", async () => {
    const { started, prepare } = recorder(16 * 2 ** 20 + 1);
    const seen: number[] = [];
    for await (const { pixel_values } of read_ahead(NUMBERS.slice(0, 2), 1, prepare)) {
      seen.push(pixel_values.data[0] as number);
      expect(started).toEqual(seen);
    }
    expect(seen).toEqual([0, 1]);
  });

  test("an error is thrown in its batch's turn", async () => {
    const { prepare } = recorder();
    const failing = async (images: readonly unknown[]) => {
      if (images[0] === 1) throw new Error("damaged");
      return prepare(images);
    };
    const batches = read_ahead(NUMBERS, 1, failing);
    expect((await batches.next()).done).toBe(false);
    await expect(batches.next()).rejects.toThrow("damaged");
    expect((await batches.next()).done).toBe(true);
  });

  test("what a consumer that stops doesn't get is disposed", async () => {
    const { disposed, prepare } = recorder();
    for await (const _ of read_ahead(NUMBERS, 1, prepare)) break;
    expect(disposed).toEqual([1]);
  });
});
