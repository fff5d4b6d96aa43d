// linear_direct: the product directly from storage, for software adapters, where workgroup memory and barriers cost
// more than the cache in front of all memory
//
// Tile           8×8 results per invocation, in named vectors, because software adapters also place arrays in memory
//                unless they are unrolled. 16 vectors feed 256 multiply-adds. The results of an invocation are
//                THREADS apart in both directions.

const THREADS: u32 = 4u;

// Rows and columns past the end repeat the last one; their results are never stored.
fn x_row(row: u32) -> u32 {
    return min(row, params.rows - 1u);
}

fn weight_row(column: u32, width: u32) -> u32 {
    return min(column, params.part - 1u) * width;
}

fn products(v: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot(v, w0), dot(v, w1), dot(v, w2), dot(v, w3));
}

@compute @workgroup_size(THREADS, THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) thread: vec3<u32>) {
    let column = group.x * 8u * THREADS + thread.x;
    let row = group.y * 8u * THREADS + thread.y;
    let width = (params.inputs + 3u) / 4u;
    let r0 = x_row(row);
    let r1 = x_row(row + THREADS);
    let r2 = x_row(row + 2u * THREADS);
    let r3 = x_row(row + 3u * THREADS);
    let r4 = x_row(row + 4u * THREADS);
    let r5 = x_row(row + 5u * THREADS);
    let r6 = x_row(row + 6u * THREADS);
    let r7 = x_row(row + 7u * THREADS);
    let c0 = weight_row(column, width);
    let c1 = weight_row(column + THREADS, width);
    let c2 = weight_row(column + 2u * THREADS, width);
    let c3 = weight_row(column + 3u * THREADS, width);
    let c4 = weight_row(column + 4u * THREADS, width);
    let c5 = weight_row(column + 5u * THREADS, width);
    let c6 = weight_row(column + 6u * THREADS, width);
    let c7 = weight_row(column + 7u * THREADS, width);
    // a is the left, b the right four columns of each row.
    var a0: vec4<f32>;
    var b0: vec4<f32>;
    var a1: vec4<f32>;
    var b1: vec4<f32>;
    var a2: vec4<f32>;
    var b2: vec4<f32>;
    var a3: vec4<f32>;
    var b3: vec4<f32>;
    var a4: vec4<f32>;
    var b4: vec4<f32>;
    var a5: vec4<f32>;
    var b5: vec4<f32>;
    var a6: vec4<f32>;
    var b6: vec4<f32>;
    var a7: vec4<f32>;
    var b7: vec4<f32>;
    for (var part = 0u; part < width; part++) {
        let w0 = load_weight(c0 + part);
        let w1 = load_weight(c1 + part);
        let w2 = load_weight(c2 + part);
        let w3 = load_weight(c3 + part);
        let w4 = load_weight(c4 + part);
        let w5 = load_weight(c5 + part);
        let w6 = load_weight(c6 + part);
        let w7 = load_weight(c7 + part);
        let v0 = load_x(r0, part);
        a0 += products(v0, w0, w1, w2, w3);
        b0 += products(v0, w4, w5, w6, w7);
        let v1 = load_x(r1, part);
        a1 += products(v1, w0, w1, w2, w3);
        b1 += products(v1, w4, w5, w6, w7);
        let v2 = load_x(r2, part);
        a2 += products(v2, w0, w1, w2, w3);
        b2 += products(v2, w4, w5, w6, w7);
        let v3 = load_x(r3, part);
        a3 += products(v3, w0, w1, w2, w3);
        b3 += products(v3, w4, w5, w6, w7);
        let v4 = load_x(r4, part);
        a4 += products(v4, w0, w1, w2, w3);
        b4 += products(v4, w4, w5, w6, w7);
        let v5 = load_x(r5, part);
        a5 += products(v5, w0, w1, w2, w3);
        b5 += products(v5, w4, w5, w6, w7);
        let v6 = load_x(r6, part);
        a6 += products(v6, w0, w1, w2, w3);
        b6 += products(v6, w4, w5, w6, w7);
        let v7 = load_x(r7, part);
        a7 += products(v7, w0, w1, w2, w3);
        b7 += products(v7, w4, w5, w6, w7);
    }
    // A single call in a loop: calling it for each of the 64 results would compile it 64 times.
    var sums = array<vec4<f32>, 16>(a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5, a6, b6, a7, b7);
    for (var i = 0u; i < 64u; i++) {
        store(sums[i / 4u][i % 4u], row + i / 8u * THREADS, column + i % 8u * THREADS);
    }
}
