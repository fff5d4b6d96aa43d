/**
 * ViT-MSN of the released sizes with weights that need no file: a hash of (tensor's key, index), which make_expected.py
 * computes to the same bits.
 */

/** The released architectures, as their config.json. */
export const CONFIGS = {
  small: { hidden_size: 384, num_attention_heads: 6, intermediate_size: 1536 },
  base: { hidden_size: 768, num_attention_heads: 12, intermediate_size: 3072 },
} as const;
export type Size = keyof typeof CONFIGS;

export const LABELS = 1000;

/** config.json of a model of that size. */
export function config_json(size: Size): string {
  const id2label = Object.fromEntries(Array.from({ length: LABELS }, (_, i) => [i, `LABEL_${i}`]));
  return JSON.stringify({ model_type: "vit_msn", ...CONFIGS[size], id2label });
}

/** FNV-1a over 32 bits. */
function name_hash(name: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/** lowbias32 (Wellons, "Prospecting for Hash Functions"). */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Multiples of amplitude / 2^23 in [-amplitude, amplitude), plus `center`. */
function fill_uniform(out: Float32Array, name: string, amplitude: number, center = 0): void {
  const key = mix(name_hash(name));
  const step = amplitude / 2 ** 23;
  for (let i = 0; i < out.length; i++) out[i] = center + ((mix(i ^ key) >>> 8) - 2 ** 23) * step;
}

/** Two images [2, 3, 224, 224]. */
export function make_pixel_values(): Float32Array {
  const values = new Float32Array(2 * 3 * 224 * 224);
  fill_uniform(values, "pixel_values", 2);
  return values;
}

/** The bytes of model.safetensors, keys in the hub's layout. */
export function make_checkpoint(size: Size): Uint8Array<ArrayBuffer> {
  const shapes = parameter_shapes(size);
  const header = make_header(shapes);
  const total = shapes.reduce((sum, [, shape]) => sum + 4 * count(shape), header.length);
  const bytes = new Uint8Array(total);
  bytes.set(header);
  let offset = header.length;
  for (const [key, shape] of shapes) {
    const values = new Float32Array(bytes.buffer, offset, count(shape));
    const is_scale = key.includes("layernorm") && key.endsWith("weight");
    fill_uniform(values, key, is_scale ? 2 ** -3 : 2 ** -4, is_scale ? 1 : 0);
    offset += values.byteLength;
  }
  return bytes;
}

type Shape = readonly number[];

function parameter_shapes(size: Size): [string, Shape][] {
  const { hidden_size: d, intermediate_size: mlp } = CONFIGS[size];
  const affine = (key: string, shape: Shape): [string, Shape][] => [
    [`${key}.weight`, shape],
    [`${key}.bias`, [shape[0] as number]],
  ];
  const layer = (i: number): [string, Shape][] => {
    const name = `vit.encoder.layer.${i}`;
    return [
      ...affine(`${name}.layernorm_before`, [d]),
      ...["query", "key", "value"].flatMap((part) => affine(`${name}.attention.attention.${part}`, [d, d])),
      ...affine(`${name}.attention.output.dense`, [d, d]),
      ...affine(`${name}.layernorm_after`, [d]),
      ...affine(`${name}.intermediate.dense`, [mlp, d]),
      ...affine(`${name}.output.dense`, [d, mlp]),
    ];
  };
  return [
    ["vit.embeddings.cls_token", [1, 1, d]],
    ["vit.embeddings.position_embeddings", [1, 197, d]],
    ...affine("vit.embeddings.patch_embeddings.projection", [d, 3, 16, 16]),
    ...Array.from({ length: 12 }, (_, i) => layer(i)).flat(),
    ...affine("vit.layernorm", [d]),
    ...affine("classifier", [LABELS, d]),
  ];
}

/** The safetensors header, padded so that the data is aligned. */
function make_header(shapes: readonly [string, Shape][]): Uint8Array {
  let end = 0;
  const entries = shapes.map(([key, shape]) => {
    const start = end;
    end += 4 * count(shape);
    return [key, { dtype: "F32", shape, data_offsets: [start, end] }];
  });
  const json = JSON.stringify(Object.fromEntries(entries));
  const text = new TextEncoder().encode(json.padEnd(Math.ceil(json.length / 8) * 8));
  const header = new Uint8Array(8 + text.length);
  new DataView(header.buffer).setBigUint64(0, BigInt(text.length), true);
  header.set(text, 8);
  return header;
}

function count(shape: Shape): number {
  return shape.reduce((a, b) => a * b, 1);
}
