// parameters: rounds and packs a linear layer's weight from plain float32, and unpacks it
//
// Layout         plain [rows, inputs] float32, starting at row `first`; packed: the same rows in the storage type as
//                words, each row zero-padded to a multiple of four values.
// Constants      FORMAT  0 float32, 1 float16, 2 bfloat16
// Preconditions  Workgroups cover the part's vectors of four values, folded into two dimensions; parameters.rs checks
//                the shapes.
// Tile           None: every value is copied once.

struct Params {
    first: u32,
    rows: u32,
    inputs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> packed: array<u32>;
@group(0) @binding(1) var<storage, read> packed_source: array<u32>;
@group(0) @binding(2) var<storage, read_write> plain: array<f32>;

fn index_of(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (group.y * groups.x + group.x) * 64u + lane;
}

@compute @workgroup_size(64)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = index_of(group, groups, lane);
    let vectors = (params.inputs + 3u) / 4u;
    if vector >= params.rows * vectors {
        return;
    }
    let column = 4u * (vector % vectors);
    let start = (params.first + vector / vectors) * params.inputs + column;
    var bits = vec4<u32>();
    for (var i = 0u; i < 4u; i++) {
        if column + i < params.inputs {
            bits[i] = rounded(source[start + i]);
        }
    }
    if FORMAT == 0u {
        for (var i = 0u; i < 4u; i++) {
            packed[4u * vector + i] = bits[i];
        }
    } else {
        packed[2u * vector] = bits.x | (bits.y << 16u);
        packed[2u * vector + 1u] = bits.z | (bits.w << 16u);
    }
}

@compute @workgroup_size(64)
fn unpack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = index_of(group, groups, lane);
    let vectors = (params.inputs + 3u) / 4u;
    if vector >= params.rows * vectors {
        return;
    }
    let column = 4u * (vector % vectors);
    let start = (params.first + vector / vectors) * params.inputs + column;
    for (var i = 0u; i < 4u; i++) {
        if column + i < params.inputs {
            var bits: u32;
            if FORMAT == 0u {
                bits = packed_source[4u * vector + i];
            } else {
                bits = (packed_source[2u * vector + i / 2u] >> (16u * (i % 2u))) & 0xffffu;
            }
            plain[start + i] = widened(bits);
        }
    }
}

// Biases are rounded to the storage type, but stored as float32.
@compute @workgroup_size(64)
fn round_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = index_of(group, groups, lane);
    if i < params.inputs {
        plain[i] = widened(rounded(source[i]));
    }
}

// The value's bits in the storage type, rounded to nearest, ties to even. The rounding of pack2x16float is up to the
// driver.
fn rounded(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    switch FORMAT {
        case 1u: { return half_of(value, bits); }
        case 2u: { return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u; }
        default: { return bits; }
    }
}

fn half_of(value: f32, bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if size >= 0x47800000u {
        // Infinity for 2¹⁶ and above.
        return sign | 0x7c00u;
    }
    if size < 0x38800000u {
        // Subnormal below 2⁻¹⁴, in steps of 2⁻²⁴; round() rounds ties to even.
        return sign | u32(round(abs(value) * 16777216.0));
    }
    return sign | ((size + 0xfffu + ((size >> 13u) & 1u) - 0x38000000u) >> 13u);
}

fn widened(bits: u32) -> f32 {
    switch FORMAT {
        case 1u: { return unpack2x16float(bits).x; }
        case 2u: { return bitcast<f32>(bits << 16u); }
        default: { return bitcast<f32>(bits); }
    }
}
