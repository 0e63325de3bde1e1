#version 450
#extension GL_GOOGLE_include_directive : require
// row_loss[r] = scale (log sum e^x - x[label]), dlogits (+)= scale (softmax - one hot); 0 if label < 0. See loss.rs.
// One workgroup a row.

#define LANES 64u
#include "rows.glsl"
#include "common.glsl"
#include "step.glsl"

layout(push_constant) uniform Params {
    uint rows;
    uint classes;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer Logits { float logits[]; };
layout(set = 0, binding = 1) readonly buffer Labels { int labels[]; };
layout(set = 0, binding = 2) readonly buffer Step { float step_values[]; };
layout(set = 0, binding = 3) writeonly buffer RowLoss { float row_loss[]; };
layout(set = 0, binding = 4) buffer Dlogits { float dlogits[]; };

#define GRADIENT 2u

void main() {
    uint row = group_index();
    if (row >= rows) return;
    uint lane = gl_LocalInvocationID.x;
    uint start = row * classes;
    float scale = step_values[STEP_LOSS_SCALE];
    bool valid = float(row) < step_values[STEP_VALID_ROWS] && labels[row] >= 0;
    uint label = uint(labels[row]);

    float largest = -INFINITE;
    for (uint c = lane; c < classes; c += LANES) largest = max(largest, logits[start + c]);
    largest = reduce_max(largest);
    float sum = 0.0;
    for (uint c = lane; c < classes; c += LANES) sum += exp(logits[start + c] - largest);
    sum = reduce_sum(sum);

    if (lane == 0u) {
        float loss = label < classes ? scale * (log(sum) + largest - logits[start + label]) : NOT_A_NUMBER;
        row_loss[row] = valid ? loss : 0.0;
    }
    if ((flags & GRADIENT) == 0u) return;
    for (uint c = lane; c < classes; c += LANES) {
        uint at = start + c;
        float value = scale * (exp(logits[at] - largest) / sum - (c == label ? 1.0 : 0.0));
        if (label >= classes) value = NOT_A_NUMBER;
        if (!valid) value = 0.0;
        dlogits[at] = (flags & ACCUMULATE) != 0u ? dlogits[at] + value : value;
    }
}
