// msn: the targets and the loss of Masked Siamese Networks, and the loss's gradient
//
// Layout         logits and probs [rows, width]; targets [images, width], which all views of an image share (row %
//                images); column_sums [width]: sums of probabilities; row_terms [rows, 3]: cross-entropy, entropy and
//                ln Σ e^logit of a row; terms [4]: loss, cross-entropy, mean-entropy, entropy; row-major float32.
// Preconditions  One workgroup per row, folded into two dimensions; one in total for the loss. msn.rs checks the
//                shapes and sums columns.
// Tile           LANES invocations walk a row together, reading adjacent values.

struct Params {
    rows: u32,
    width: u32,
    images: u32,
    // The factor applied to the logits.
    scale: f32,
    me_max_weight: f32,
    entropy_weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;

// sharpen
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// balance
@group(0) @binding(1) var<storage, read> column_sums: array<f32>;

// anchors; their logits are x
@group(0) @binding(2) var<storage, read> targets: array<f32>;
@group(0) @binding(3) var<storage, read_write> probs: array<f32>;
@group(0) @binding(4) var<storage, read_write> row_terms: array<f32>;

// loss
@group(0) @binding(2) var<storage, read> sums_of_terms: array<f32>;
@group(0) @binding(3) var<storage, read_write> terms: array<f32>;

// backward
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read> known_sums: array<f32>;
@group(0) @binding(4) var<storage, read> known_terms: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_logits: array<f32>;

// softmax(scale · x)
@compute @workgroup_size(LANES)
fn sharpen(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    let found = row_max_and_sum(first, params.scale, lane);
    for (var i = lane; i < params.width; i += LANES) {
        y[first + i] = exp((x[first + i] - found.x) * params.scale) / found.y;
    }
}

// Divides each column by its sum, then the row by its own. A column that sums to zero is unchanged.
@compute @workgroup_size(LANES)
fn balance(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var total = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        let whole = column_sums[i];
        let share = select(y[first + i] / whole, 0.0, whole == 0.0);
        y[first + i] = share;
        total += share;
    }
    total = sum(total, lane);
    for (var i = lane; i < params.width; i += LANES) {
        y[first + i] /= total;
    }
}

// The probabilities and terms of a row.
@compute @workgroup_size(LANES)
fn anchors(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    let first_target = row % params.images * params.width;
    let found = row_max_and_sum(first, 1.0, lane);
    let highest = found.x;
    let rest = log(found.y);
    var cross_entropy = 0.0;
    var entropy = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        let prob = exp(x[first + i] - highest) / found.y;
        probs[first + i] = prob;
        let minus_log = rest + (highest - x[first + i]);
        cross_entropy += targets[first_target + i] * minus_log;
        entropy += prob * minus_log;
    }
    cross_entropy = sum(cross_entropy, lane);
    entropy = sum(entropy, lane);
    if lane == 0u {
        row_terms[3u * row] = cross_entropy;
        row_terms[3u * row + 1u] = entropy;
        row_terms[3u * row + 2u] = highest + rest;
    }
}

// ln of a mean probability, or 0 if the mean is 0, since the two are multiplied.
fn log_mean(total: f32) -> f32 {
    return select(log(total / f32(params.rows)), 0.0, total == 0.0);
}

@compute @workgroup_size(LANES)
fn loss(@builtin(local_invocation_index) lane: u32) {
    var me_max = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        me_max += column_sums[i] / f32(params.rows) * log_mean(column_sums[i]);
    }
    me_max = sum(me_max, lane) + log(f32(params.width));
    if lane == 0u {
        let cross_entropy = sums_of_terms[0] / f32(params.rows);
        let entropy = sums_of_terms[1] / f32(params.rows);
        terms[0] = cross_entropy + params.me_max_weight * me_max + params.entropy_weight * entropy;
        terms[1] = cross_entropy;
        terms[2] = me_max;
        terms[3] = entropy;
    }
}

// With l̄ the logarithms of the mean probabilities and H the row's entropy: (p · (Σ t + λ (l̄ − Σ p l̄) − w (log p +
// H)) − t) / rows.
@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    let first_target = row % params.images * params.width;
    let entropy = known_terms[3u * row + 1u];
    let log_sum = known_terms[3u * row + 2u];
    var whole = 0.0;
    var mean = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        whole += targets[first_target + i];
        mean += exp(logits[first + i] - log_sum) * log_mean(known_sums[i]);
    }
    whole = sum(whole, lane);
    mean = sum(mean, lane);
    for (var i = lane; i < params.width; i += LANES) {
        let log_prob = logits[first + i] - log_sum;
        let slope = whole + params.me_max_weight * (log_mean(known_sums[i]) - mean)
            - params.entropy_weight * (log_prob + entropy);
        d_logits[first + i] = (exp(log_prob) * slope - targets[first_target + i]) / f32(params.rows);
    }
}
