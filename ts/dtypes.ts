/** Floating-point types of parameters; arithmetic is always float32. */
export const FLOAT_DTYPES = ["float32", "float16", "bfloat16"] as const;
export type FloatDtype = (typeof FLOAT_DTYPES)[number];

/**
 * The types of a linear layer's weight, in memory and in files. "int8": signed bytes and one float32 scale per output.
 * The layer's input is quantised row by row at run time, sums are exact, and everything else is float32.
 */
export const WEIGHT_DTYPES = [...FLOAT_DTYPES, "int8"] as const;
export type WeightDtype = (typeof WEIGHT_DTYPES)[number];

export const BYTES_PER_ELEMENT: Readonly<Record<WeightDtype, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  int8: 1,
};

/** The names in transformers.js. */
export const DTYPE_ALIASES = {
  fp32: "float32",
  fp16: "float16",
  bf16: "bfloat16",
  q8: "int8",
} as const satisfies Record<string, WeightDtype>;
/** Values of the dtype option; the short ones are from transformers.js. */
export type DtypeName = WeightDtype | keyof typeof DTYPE_ALIASES;
