// bytes_scalar: weights as bytes, for any number of inputs. What is loaded past the end of a row belongs to the next
// one, or repeats the last word: x is zero there.

@group(0) @binding(2) var<storage, read> weight: array<u32>;

// Sixteen bytes of a row.
fn load_bytes(row: u32, part: u32) -> vec4<u32> {
    let first = row * ((params.inputs + 3u) / 4u) + 4u * part;
    return vec4<u32>(weight[first], weight[first + 1u], weight[first + 2u], weight[first + 3u]);
}
