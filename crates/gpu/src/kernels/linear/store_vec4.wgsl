// store_vec4: the epilogue of a linear layer whose number of outputs is a multiple of four, in every part

@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<Stored>>;

// The biases of four columns.
fn bias_of(part_column: u32) -> vec4<f32> {
    return bias[(params.first + part_column) / 4u];
}

// Applies the epilogue to the sums of four columns and stores the results, unless they are out of bounds.
fn store_four(sums: vec4<f32>, biases: vec4<f32>, row: u32, part_column: u32) {
    if row < params.rows && part_column < params.part {
        let column = params.first + part_column;
        let index = (row * params.outputs + column) / 4u;
        let v = scaled_four(sums, column) + biases;
        var values = vec4<f32>(activate(v.x), activate(v.y), activate(v.z), activate(v.w));
        if RESIDUAL == 1u {
            values += residual[index];
        }
        y[index] = stored_four(values);
    }
}
