// tokens_backward: the gradients of the ops that move tokens: embed_tokens, take_tokens, pool and
// interpolate_positions
//
// Layout         embed: grad [batch, tokens, width], mask [batch, tokens − 1], y [batch, tokens − 1, width]. take:
//                grad [batch, taken, width], y [batch, tokens, width]; interpolate: grad [taken, width], y [tokens,
//                width]. pool: grad [batch, width], y [batch, tokens, width]. Row-major float32. spans: the start and
//                end of the entries of a token (take) or of a row or column (interpolate).
// Constants      MODE  embed: 0 copies everything, 1 the unmasked patches, 2 the masked ones; pool: 1 for the mean, 0
//                      for CLS
// Preconditions  Workgroups: x over width, y over y's tokens, z over the batch; for interpolate, tokens are folded
//                into y and z. tokens_backward.rs checks the shapes and builds the tables.
// Tile           None: each result gathers its contributions in a fixed order. 64 invocations handle adjacent values.

struct Params {
    tokens: u32,
    width: u32,
    // take: tokens of grad. interpolate: rows of the old grid, whose spans come first.
    taken: u32,
    // interpolate: columns of both grids.
    columns: u32,
    new_columns: u32,
}

struct Entry {
    place: u32,
    weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad: array<f32>;
@group(0) @binding(2) var<storage, read> mask: array<f32>;
@group(0) @binding(3) var<storage, read_write> embedded: array<f32>;
@group(0) @binding(2) var<storage, read_write> pooled: array<f32>;
@group(0) @binding(2) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> entries: array<Entry>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn embed(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width {
        return;
    }
    let patch_index = id.z * (params.tokens - 1u) + id.y;
    var value = grad[(id.z * params.tokens + 1u + id.y) * params.width + id.x];
    if MODE > 0u && (mask[patch_index] != 0.0) != (MODE == 2u) {
        value = 0.0;
    }
    embedded[patch_index * params.width + id.x] = value;
}

@compute @workgroup_size(64)
fn pool(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width {
        return;
    }
    var value = grad[id.z * params.width + id.x];
    if MODE == 1u {
        value /= f32(params.tokens - 1u);
    }
    pooled[(id.z * params.tokens + id.y) * params.width + id.x] = select(0.0, value, (id.y > 0u) == (MODE == 1u));
}

@compute @workgroup_size(64)
fn take(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width {
        return;
    }
    let token = id.z * params.tokens + id.y;
    let span = spans[token];
    var total = 0.0;
    for (var i = span.x; i < span.y; i++) {
        total += grad[(id.z * params.taken + entries[i].place) * params.width + id.x];
    }
    y[token * params.width + id.x] = total;
}

@compute @workgroup_size(64)
fn interpolate(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let token = id.z * groups.y + id.y;
    if id.x >= params.width || token >= params.tokens {
        return;
    }
    if token == 0u {
        y[id.x] = grad[id.x];
        return;
    }
    let rows = spans[(token - 1u) / params.columns];
    let columns = spans[params.taken + (token - 1u) % params.columns];
    var total = 0.0;
    for (var i = rows.x; i < rows.y; i++) {
        let row = 1u + entries[i].place * params.new_columns;
        var line = 0.0;
        for (var j = columns.x; j < columns.y; j++) {
            line += entries[j].weight * grad[(row + entries[j].place) * params.width + id.x];
        }
        total += entries[i].weight * line;
    }
    y[token * params.width + id.x] = total;
}
