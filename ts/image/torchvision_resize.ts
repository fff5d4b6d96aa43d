import { invalid_argument as invalid, show } from "../errors.ts";
import type { Pixels } from "./pixels.ts";
import {
  type Coefficients,
  coefficients,
  FILTERS,
  type Filter,
  RESAMPLE,
  type ResampleCode,
  resample_columns,
  resample_rows,
  resize_nearest,
  type Steps,
} from "./resize.ts";

/** The resize of a backend other than Pillow. @throws VitMsnError INVALID_ARGUMENT unless it is torchvision. */
export function steps_of(backend: string): typeof torchvision_steps {
  if (backend === "torchvision") return torchvision_steps;
  throw invalid(`The image processor's backend must be "pil" or "torchvision"; it is ${show(backend)}.`);
}

/**
 * Resizes as torchvision's resize does with a uint8 tensor and antialias, bit for bit on processors with AVX2. It differs from
 * Pillow's in three ways: weights have 16 bits rather than 22, the width always changes first, and colour isn't
 * premultiplied by alpha. (PyTorch, aten/src/ATen/native/cpu/UpSampleKernel.cpp.)
 *
 * @throws VitMsnError INVALID_ARGUMENT for filters that torchvision doesn't have for tensors.
 */
function* torchvision_steps(
  source: Pixels,
  width: number,
  height: number,
  resample: ResampleCode,
): Steps<Pixels> {
  if (source.width === width && source.height === height) return source;
  if (resample === RESAMPLE.nearest) return resize_nearest(source, width, height, positions);
  if (resample === RESAMPLE.box || resample === RESAMPLE.hamming) {
    throw invalid(
      `torchvision has no filter for resample ${resample}; use nearest, lanczos, bilinear or bicubic, or backend "pil".`,
    );
  }
  const filter = FILTERS[resample];
  const rows = yield* resample_rows(source, width, filter, int16_coefficients);
  return yield* resample_columns(rows, height, filter, int16_coefficients);
}

/** As many fractional bits as the largest weight leaves in 16 bits with a sign. */
function int16_coefficients(source_size: number, size: number, filter: Filter): Coefficients {
  const { bits: most, weights } = coefficients(source_size, size, filter);
  let largest = 0;
  for (const weight of weights) largest = Math.max(largest, weight);
  let bits = 0;
  while (bits < most && Math.trunc(0.5 + largest * 2 ** (bits + 1 - most)) < 1 << 15) bits++;
  return coefficients(source_size, size, filter, bits);
}

/** PyTorch's "nearest-exact": the pixel under each target pixel's centre, by a scale in float32. */
function positions(source_size: number, size: number): Int32Array {
  const scale = Math.fround(source_size / size);
  return Int32Array.from({ length: size }, (_, i) =>
    Math.min(Math.floor(Math.fround((i + 0.5) * scale)), source_size - 1),
  );
}
