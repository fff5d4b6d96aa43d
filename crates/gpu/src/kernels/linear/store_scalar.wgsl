// store_scalar: the epilogue of a linear layer with any number of outputs

@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<Stored>;

// Applies the epilogue to a sum of products and stores the result, unless it is out of bounds.
fn store(sum: f32, row: u32, part_column: u32) {
    if row < params.rows && part_column < params.part {
        let column = params.first + part_column;
        let index = row * params.outputs + column;
        var value = activate(scaled(sum, column) + bias[column]);
        if RESIDUAL == 1u {
            value += residual[index];
        }
        y[index] = stored(value);
    }
}

// The biases of four columns, unused here: `store` loads them.
fn bias_of(part_column: u32) -> vec4<f32> {
    return vec4<f32>();
}

// The same for the sums of four columns.
fn store_four(sums: vec4<f32>, biases: vec4<f32>, row: u32, part_column: u32) {
    store(sums.x, row, part_column);
    store(sums.y, row, part_column + 1u);
    store(sums.z, row, part_column + 2u);
    store(sums.w, row, part_column + 3u);
}
