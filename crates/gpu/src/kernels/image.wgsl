// image: one pass of Pillow's resampling. Each result is a sum of source pixels along one axis, weighted in fixed point
// with 22 fractional bits and rounded to 8 bits. The code that compiles this module defines CHANNELS (the bytes per
// source pixel), VERTICAL and LAST. The last pass crops, looks its bytes up and writes float32 planes; the others write
// packed RGBA.

struct Params {
    width: u32,
    height: u32,
    // The size of the resampled image. The results may be a part of it, starting at (left, top).
    full_width: u32,
    full_height: u32,
    left: i32,
    top: i32,
    // Bytes per row of the source.
    pitch: u32,
    // Entries in the table per result: the first pixel, the number of pixels, their weights.
    stride: u32,
    // The offset of the results.
    offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<i32>;
// The value of each byte, for each channel; read by the last pass.
@group(0) @binding(3) var<storage, read> values: array<f32>;
@group(0) @binding(4) var<storage, read_write> results: array<u32>;

const HALF: i32 = 1 << 21;

fn byte_at(address: u32) -> i32 {
    return i32((source[address / 4] >> (8 * (address % 4))) & 255);
}

fn pixel(x: u32, y: u32) -> vec3<i32> {
    let address = y * params.pitch + x * CHANNELS;
    if CHANNELS < 3 {
        return vec3<i32>(byte_at(address));
    }
    return vec3<i32>(byte_at(address), byte_at(address + 1), byte_at(address + 2));
}

// The pixel of the resampled image; black outside it.
fn resampled(x: i32, y: i32) -> vec3<u32> {
    if x < 0 || y < 0 || x >= i32(params.full_width) || y >= i32(params.full_height) {
        return vec3<u32>(0);
    }
    let place = select(u32(x), u32(y), VERTICAL == 1);
    let entry = place * params.stride;
    let first = u32(table[entry]);
    let count = u32(table[entry + 1]);
    var sums = vec3<i32>(HALF);
    for (var k = 0u; k < count; k++) {
        var at = vec2<u32>(first + k, u32(y));
        if VERTICAL == 1 {
            at = vec2<u32>(u32(x), first + k);
        }
        sums += pixel(at.x, at.y) * table[entry + 2 + k];
    }
    return vec3<u32>(clamp(sums >> vec3<u32>(22), vec3<i32>(0), vec3<i32>(255)));
}

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width || id.y >= params.height {
        return;
    }
    let rgb = resampled(i32(id.x) + params.left, i32(id.y) + params.top);
    let at = params.offset + id.y * params.width + id.x;
    if LAST == 0 {
        results[at] = rgb.x | (rgb.y << 8) | (rgb.z << 16);
        return;
    }
    let plane = params.width * params.height;
    for (var c = 0u; c < 3; c++) {
        results[at + c * plane] = bitcast<u32>(values[256 * c + rgb[c]]);
    }
}
