/**
 * Seeded random numbers that depend only on (seed, name, index), so that a model's newly initialised parameters don't
 * depend on the order and pieces in which they are computed.
 */

/** FNV-1a: hashes a parameter's name to 32 bits. */
export function hash_name(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** lowbias32 (Wellons, "Prospecting for Hash Functions"): a bijection of 32 bits with little bias. */
export function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Elements [start, start + length) of a stream of N(0, std²): the Box-Muller transform of counter-based uniforms. */
export function normal_values(
  seed: number,
  name: string,
  start: number,
  length: number,
  std: number,
): Float32Array<ArrayBuffer> {
  const key = mix(hash_name(name) ^ mix(seed >>> 0));
  const out = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    const counter = 2 * (start + i);
    const u1 = (mix(key ^ mix(counter)) + 1) / 4294967297; // in (0, 1): its logarithm is finite
    const u2 = mix(key ^ mix(counter + 1)) / 4294967296;
    out[i] = std * Math.sqrt(-2 * Math.log(u1)) * Math.cos(2 * Math.PI * u2);
  }
  return out;
}
