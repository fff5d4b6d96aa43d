/**
 * The dense linear algebra for fitting a classifier, in float64: there are few features, and the optimum is
 * precise. Matrices are row-major. Each product sums in one fixed order, so results are reproducible.
 *
 * Blocks of 4 rows × 2 rows keep eight sums in registers, about twice as fast in V8 as a plain triple loop.
 */

/** Rows and classes are padded with zeros to multiples of these, so that blocks need no remainders. */
export const ROW_BLOCK = 4;
export const CLASS_BLOCK = 2;

export function round_up(count: number, block: number): number {
  return Math.ceil(count / block) * block;
}

/** out [rows, classes] = x [rows, columns] · wᵀ, w [classes, columns]; rows and classes are padded. */
export function times_transposed(x: Float64Array, w: Float64Array, columns: number, out: Float64Array): void {
  const rows = x.length / columns;
  const classes = w.length / columns;
  for (let i = 0; i < rows; i += ROW_BLOCK) {
    const x0 = i * columns;
    const [x1, x2, x3] = [x0 + columns, x0 + 2 * columns, x0 + 3 * columns];
    for (let c = 0; c < classes; c += CLASS_BLOCK) {
      const w0 = c * columns;
      const w1 = w0 + columns;
      let [a0, a1, a2, a3, b0, b1, b2, b3] = [0, 0, 0, 0, 0, 0, 0, 0];
      for (let k = 0; k < columns; k++) {
        const u = w[w0 + k] as number;
        const v = w[w1 + k] as number;
        const p = x[x0 + k] as number;
        const q = x[x1 + k] as number;
        const r = x[x2 + k] as number;
        const s = x[x3 + k] as number;
        a0 += p * u;
        b0 += p * v;
        a1 += q * u;
        b1 += q * v;
        a2 += r * u;
        b2 += r * v;
        a3 += s * u;
        b3 += s * v;
      }
      const o = i * classes + c;
      out[o] = a0;
      out[o + 1] = b0;
      out[o + classes] = a1;
      out[o + classes + 1] = b1;
      out[o + 2 * classes] = a2;
      out[o + 2 * classes + 1] = b2;
      out[o + 3 * classes] = a3;
      out[o + 3 * classes + 1] = b3;
    }
  }
}

/**
 * out [classes, columns] = qᵀ · x, with q [rows, classes] and x [rows, columns]; rows and classes are padded.
 */
export function transposed_times(q: Float64Array, x: Float64Array, columns: number, out: Float64Array): void {
  const rows = x.length / columns;
  const classes = q.length / rows;
  out.fill(0);
  for (let i = 0; i < rows; i += ROW_BLOCK) {
    const x0 = i * columns;
    const [x1, x2, x3] = [x0 + columns, x0 + 2 * columns, x0 + 3 * columns];
    for (let c = 0; c < classes; c += CLASS_BLOCK) {
      const at = i * classes + c;
      const [a0, b0] = [q[at] as number, q[at + 1] as number];
      const [a1, b1] = [q[at + classes] as number, q[at + classes + 1] as number];
      const [a2, b2] = [q[at + 2 * classes] as number, q[at + 2 * classes + 1] as number];
      const [a3, b3] = [q[at + 3 * classes] as number, q[at + 3 * classes + 1] as number];
      const o0 = c * columns;
      const o1 = o0 + columns;
      for (let k = 0; k < columns; k++) {
        const p = x[x0 + k] as number;
        const r = x[x1 + k] as number;
        const s = x[x2 + k] as number;
        const t = x[x3 + k] as number;
        out[o0 + k] = (out[o0 + k] as number) + p * a0 + r * a1 + s * a2 + t * a3;
        out[o1 + k] = (out[o1 + k] as number) + p * b0 + r * b1 + s * b2 + t * b3;
      }
    }
  }
}

/** xᵀ · x [columns, columns] of x [rows, columns], padded rows. */
export function gram(x: Float64Array, columns: number): Float64Array {
  const rows = x.length / columns;
  const out = new Float64Array(columns * columns);
  for (let i = 0; i < rows; i += ROW_BLOCK) {
    const x0 = i * columns;
    const [x1, x2, x3] = [x0 + columns, x0 + 2 * columns, x0 + 3 * columns];
    for (let a = 0; a < columns; a++) {
      const [p, q, r, s] = [
        x[x0 + a] as number,
        x[x1 + a] as number,
        x[x2 + a] as number,
        x[x3 + a] as number,
      ];
      const row = a * columns;
      for (let b = 0; b <= a; b++) {
        out[row + b] =
          (out[row + b] as number) +
          p * (x[x0 + b] as number) +
          q * (x[x1 + b] as number) +
          r * (x[x2 + b] as number) +
          s * (x[x3 + b] as number);
      }
    }
  }
  for (let a = 0; a < columns; a++) {
    for (let b = 0; b < a; b++) out[b * columns + a] = out[a * columns + b] as number;
  }
  return out;
}

/** The lower triangle L with L · Lᵀ = a, where a [size, size] is symmetric and positive definite. */
export function cholesky(a: Float64Array, size: number): Float64Array {
  const l = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    const row = i * size;
    for (let j = 0; j <= i; j++) {
      const other = j * size;
      let sum = a[row + j] as number;
      for (let k = 0; k < j; k++) sum -= (l[row + k] as number) * (l[other + k] as number);
      l[row + j] = i === j ? Math.sqrt(sum) : sum / (l[other + j] as number);
    }
  }
  return l;
}

/** Solves L · Lᵀ · y = b in place for each row b of `rows` [count, size]. */
export function cholesky_solve(l: Float64Array, size: number, rows: Float64Array): void {
  for (let start = 0; start < rows.length; start += size) {
    for (let i = 0; i < size; i++) {
      const row = i * size;
      let sum = rows[start + i] as number;
      for (let k = 0; k < i; k++) sum -= (l[row + k] as number) * (rows[start + k] as number);
      rows[start + i] = sum / (l[row + i] as number);
    }
    for (let i = size - 1; i >= 0; i--) {
      const row = i * size;
      const value = (rows[start + i] as number) / (l[row + i] as number);
      rows[start + i] = value;
      for (let k = 0; k < i; k++)
        rows[start + k] = (rows[start + k] as number) - (l[row + k] as number) * value;
    }
  }
}

/** (L · Lᵀ)⁻¹ = L⁻ᵀ · L⁻¹ [size, size]. */
export function inverse_of(l: Float64Array, size: number): Float64Array {
  const inverse = new Float64Array(round_up(size, ROW_BLOCK) * size);
  for (let i = 0; i < size; i++) {
    const row = inverse.subarray(i * size, i * size + i + 1);
    row[i] = 1;
    for (let k = 0; k < i; k++)
      add_scaled(
        row.subarray(0, k + 1),
        -(l[i * size + k] as number),
        inverse.subarray(k * size, k * size + k + 1),
      );
    const diagonal = l[i * size + i] as number;
    for (let k = 0; k <= i; k++) row[k] = (row[k] as number) / diagonal;
  }
  return gram(inverse, size);
}

export function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

/** y += factor · x. */
export function add_scaled(y: Float64Array, factor: number, x: Float64Array): void {
  for (let i = 0; i < y.length; i++) y[i] = (y[i] as number) + factor * (x[i] as number);
}

/**
 * An orthonormal basis [rank, columns] of the span of x's rows, by Gram and Schmidt's method, each row
 * projected twice to remove rounding errors (Giraud et al. 2005). Linearly dependent rows add nothing.
 */
export function orthonormal_basis(x: Float64Array, columns: number): Float64Array {
  const rows = x.length / columns;
  const basis = new Float64Array(x.length);
  let rank = 0;
  for (let i = 0; i < rows; i++) {
    const candidate = x.slice(i * columns, (i + 1) * columns);
    const length = Math.sqrt(dot(candidate, candidate));
    for (let pass = 0; pass < 2; pass++) {
      for (let j = 0; j < rank; j++) {
        const direction = basis.subarray(j * columns, (j + 1) * columns);
        add_scaled(candidate, -dot(candidate, direction), direction);
      }
    }
    const rest = Math.sqrt(dot(candidate, candidate));
    if (!(rest > 1e-10 * length)) continue;
    basis.set(
      candidate.map((value) => value / rest),
      rank * columns,
    );
    rank++;
  }
  return basis.slice(0, rank * columns);
}
