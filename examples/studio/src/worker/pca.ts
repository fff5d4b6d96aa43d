const COMPONENTS = 3;
const ITERATIONS = 40;

export interface Pca {
  /** [rows, 3] */
  scores: Float32Array;
  /** Shares of the variance. */
  explained: [number, number, number];
}

/**
 * The first three principal components of rows [rows, size], by subspace iteration: two products with the rows for each
 * step, no size × size matrix. Signs are chosen so that each component's largest weight is positive.
 */
export function principal_components(rows: Float32Array, size: number): Pca {
  const count = rows.length / size;
  const centred = centre(rows, count, size);
  const total = centred.reduce((sum, value) => sum + value * value, 0);
  let basis = orthonormal(start_basis(size));
  for (let i = 0; i < ITERATIONS; i++)
    basis = orthonormal(back(centred, project(centred, basis, size), size));
  const scores = basis.map((direction) => project(centred, [direction], size)[0] as Float64Array);
  const found = scores.map((score) => score.reduce((sum, value) => sum + value * value, 0));
  const order = [0, 1, 2].sort((a, b) => (found[b] as number) - (found[a] as number));
  const result = new Float32Array(count * COMPONENTS);
  order.forEach((component, column) => {
    const sign = sign_of_largest(basis[component] as Float64Array);
    const score = scores[component] as Float64Array;
    for (let i = 0; i < count; i++) result[i * COMPONENTS + column] = sign * (score[i] as number);
  });
  const explained = order.map((c) => (total > 0 ? (found[c] as number) / total : 0));
  return { scores: result, explained: explained as [number, number, number] };
}

/** Scores [rows, 3] as colours from 0 to 1, each component stretched over its own range but for its outermost 1 %. */
export function as_colours(scores: Float32Array): Float32Array {
  const count = scores.length / COMPONENTS;
  const colours = new Float32Array(scores.length);
  for (let c = 0; c < COMPONENTS; c++) {
    const column = Float32Array.from(
      { length: count },
      (_, i) => scores[i * COMPONENTS + c] as number,
    ).sort();
    const low = column[Math.floor(0.01 * (count - 1))] as number;
    const high = column[Math.ceil(0.99 * (count - 1))] as number;
    const scale = high > low ? 1 / (high - low) : 0;
    for (let i = c; i < scores.length; i += COMPONENTS)
      colours[i] = Math.min(1, Math.max(0, ((scores[i] as number) - low) * scale));
  }
  return colours;
}

function centre(rows: Float32Array, count: number, size: number): Float64Array {
  const mean = new Float64Array(size);
  rows.forEach((value, i) => {
    mean[i % size] = (mean[i % size] as number) + value / count;
  });
  return Float64Array.from(rows, (value, i) => value - (mean[i % size] as number));
}

/** Any three directions that depend on the size alone. */
function start_basis(size: number): Float64Array[] {
  return Array.from({ length: COMPONENTS }, (_, c) =>
    Float64Array.from({ length: size }, (_, i) => Math.sin((i + 1) * (c + 1) * 1.7) + 0.01),
  );
}

function project(rows: Float64Array, basis: readonly Float64Array[], size: number): Float64Array[] {
  const count = rows.length / size;
  return basis.map((direction) => {
    const score = new Float64Array(count);
    for (let i = 0, at = 0; i < count; i++) {
      let sum = 0;
      for (let k = 0; k < size; k++, at++) sum += (rows[at] as number) * (direction[k] as number);
      score[i] = sum;
    }
    return score;
  });
}

function back(rows: Float64Array, scores: readonly Float64Array[], size: number): Float64Array[] {
  return scores.map((score) => {
    const direction = new Float64Array(size);
    for (let i = 0, at = 0; i < score.length; i++) {
      const weight = score[i] as number;
      for (let k = 0; k < size; k++, at++)
        direction[k] = (direction[k] as number) + weight * (rows[at] as number);
    }
    return direction;
  });
}

/** Gram-Schmidt; a direction that vanishes, as with fewer rows than components, stays zero. */
function orthonormal(vectors: readonly Float64Array[]): Float64Array[] {
  const done: Float64Array[] = [];
  for (const vector of vectors) {
    const rest = vector.slice();
    const before = norm(rest);
    for (const other of done) {
      const along = dot(rest, other);
      for (let k = 0; k < rest.length; k++) rest[k] = (rest[k] as number) - along * (other[k] as number);
    }
    const length = norm(rest);
    const scale = length > 1e-9 * before ? 1 / length : 0;
    done.push(rest.map((value) => value * scale));
  }
  return done;
}

function dot(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
}

function norm(vector: Float64Array): number {
  return Math.sqrt(dot(vector, vector));
}

function sign_of_largest(direction: Float64Array): 1 | -1 {
  const largest = direction.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
  return largest < 0 ? -1 : 1;
}
