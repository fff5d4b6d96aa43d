/** The most rows that are used: the time grows with the cube of the smaller side. */
const MAX_ROWS = 512;
/** Sweeps of QL for one eigenvalue; a few suffice. */
const MAX_SWEEPS = 60;

/**
 * The effective rank of features: exp of the entropy of their singular values, divided by their sum, after the mean was
 * subtracted (Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007). From 1, if all
 * features lie on one line, to min(rows − 1, width); 0 if they are all equal.
 * @param features [rows, width]; the first 512 rows are used.
 */
export function effective_rank(features: Float32Array, width: number): number {
  const rows = Math.min(features.length / width, MAX_ROWS);
  const centred = centre(features.subarray(0, rows * width), width);
  // The eigenvalues of X·Xᵀ and Xᵀ·X other than 0 are the same: the squares of X's singular values.
  const products =
    rows < width ? row_products(centred, width) : row_products(transpose(centred, width), rows);
  const squares = symmetric_eigenvalues(products, Math.min(rows, width));
  const noise = Math.max(...squares) * squares.length * Number.EPSILON;
  const values = Array.from(
    squares.filter((square) => square > noise),
    Math.sqrt,
  );
  const sum = values.reduce((a, b) => a + b, 0);
  if (sum === 0) return 0;
  const entropy = values.reduce((total, value) => total - (value / sum) * Math.log(value / sum), 0);
  return Math.exp(entropy);
}

/** Rows with the mean of each column subtracted; after the first row, so that equal rows are exactly 0. */
function centre(rows: Float32Array, width: number): Float64Array {
  const count = rows.length / width;
  const shifted = Float64Array.from(rows, (value, i) => value - (rows[i % width] as number));
  const mean = new Float64Array(width);
  shifted.forEach((value, i) => {
    mean[i % width] = (mean[i % width] as number) + value / count;
  });
  return shifted.map((value, i) => value - (mean[i % width] as number));
}

function transpose(rows: Float64Array, width: number): Float64Array {
  const count = rows.length / width;
  return Float64Array.from(rows, (_, i) => rows[(i % count) * width + Math.floor(i / count)] as number);
}

/** The dot products of all pairs of rows, [count, count]. */
function row_products(rows: Float64Array, width: number): Float64Array {
  const count = rows.length / width;
  const products = new Float64Array(count * count);
  for (let i = 0; i < count; i++) {
    const a = rows.subarray(i * width, (i + 1) * width);
    for (let j = 0; j <= i; j++) {
      const b = rows.subarray(j * width, (j + 1) * width);
      let sum = 0;
      for (let k = 0; k < width; k++) sum += (a[k] as number) * (b[k] as number);
      products[i * count + j] = sum;
      products[j * count + i] = sum;
    }
  }
  return products;
}

/**
 * The eigenvalues of a symmetric matrix [size, size], in no order: Householder's tridiagonal form, then QL with implicit shifts
 * (Golub & Van Loan, "Matrix Computations", 8.3). The matrix is overwritten.
 */
function symmetric_eigenvalues(matrix: Float64Array, size: number): Float64Array {
  const { diagonal, beside } = tridiagonal(matrix, size);
  for (let low = 0; low < size; low++) {
    for (let sweep = 0; sweep < MAX_SWEEPS; sweep++) {
      const high = end_of_block(diagonal, beside, low);
      if (high === low) break;
      ql_sweep(diagonal, beside, low, high);
    }
  }
  return diagonal;
}

/** The diagonal, and the elements next to it: beside[i] lies between i and i + 1. */
function tridiagonal(matrix: Float64Array, size: number): { diagonal: Float64Array; beside: Float64Array } {
  const at = (i: number, j: number) => matrix[i * size + j] as number;
  const beside = new Float64Array(size);
  const [v, p] = [new Float64Array(size), new Float64Array(size)];
  for (let k = 0; k + 1 < size; k++) {
    let norm = 0;
    for (let i = k + 1; i < size; i++) norm = Math.hypot(norm, at(i, k));
    const alpha = at(k + 1, k) > 0 ? -norm : norm;
    beside[k] = alpha;
    let squares = 0;
    for (let i = k + 1; i < size; i++) {
      v[i] = at(i, k) - (i === k + 1 ? alpha : 0);
      squares += (v[i] as number) ** 2;
    }
    if (squares === 0) continue;
    reflect(matrix, size, k + 1, v, p, 2 / squares);
  }
  return { diagonal: Float64Array.from({ length: size }, (_, i) => at(i, i)), beside };
}

/** The lower right part of a matrix, from row `first`, becomes H·A·H with H = 1 − scale·v·vᵀ. */
function reflect(
  matrix: Float64Array,
  size: number,
  first: number,
  v: Float64Array,
  p: Float64Array,
  scale: number,
): void {
  let product = 0;
  for (let i = first; i < size; i++) {
    let sum = 0;
    for (let j = first; j < size; j++) sum += (matrix[i * size + j] as number) * (v[j] as number);
    p[i] = scale * sum;
    product += (p[i] as number) * (v[i] as number);
  }
  const share = (scale * product) / 2;
  for (let i = first; i < size; i++) p[i] = (p[i] as number) - share * (v[i] as number);
  for (let i = first; i < size; i++) {
    const [vi, pi] = [v[i] as number, p[i] as number];
    for (let j = first; j < size; j++) {
      const at = i * size + j;
      matrix[at] = (matrix[at] as number) - vi * (p[j] as number) - pi * (v[j] as number);
    }
  }
}

/** The last row that is connected with row `low`. */
function end_of_block(diagonal: Float64Array, beside: Float64Array, low: number): number {
  let high = low;
  while (high + 1 < diagonal.length) {
    const scale = Math.abs(diagonal[high] as number) + Math.abs(diagonal[high + 1] as number);
    if (Math.abs(beside[high] as number) <= Number.EPSILON * scale) break;
    high++;
  }
  return high;
}

/** One sweep of rotations from row `high` up to row `low`, which shrinks beside[low]. */
function ql_sweep(diagonal: Float64Array, beside: Float64Array, low: number, high: number): void {
  const d = (i: number) => diagonal[i] as number;
  const e = (i: number) => beside[i] as number;
  const half = (d(low + 1) - d(low)) / (2 * e(low));
  const root = Math.hypot(half, 1);
  let g = d(high) - d(low) + e(low) / (half + (half >= 0 ? root : -root));
  let [sine, cosine, shift] = [1, 1, 0];
  for (let i = high - 1; i >= low; i--) {
    const [f, b] = [sine * e(i), cosine * e(i)];
    const length = Math.hypot(f, g);
    beside[i + 1] = length;
    if (length === 0) {
      diagonal[i + 1] = d(i + 1) - shift;
      beside[high] = 0;
      return;
    }
    [sine, cosine] = [f / length, g / length];
    const moved = d(i + 1) - shift;
    const turn = (d(i) - moved) * sine + 2 * cosine * b;
    shift = sine * turn;
    diagonal[i + 1] = moved + shift;
    g = cosine * turn - b;
  }
  diagonal[low] = d(low) - shift;
  beside[low] = g;
  beside[high] = 0;
}
