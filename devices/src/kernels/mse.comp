#version 450
#extension GL_GOOGLE_include_directive : require
// row_loss[r] = scale sum_c (pred - target)^2, dpred (+)= 2 scale (pred - target). See loss.rs. One workgroup a row.

#define LANES 64u
#include "rows.glsl"
#include "common.glsl"
#include "step.glsl"

layout(push_constant) uniform Params {
    uint rows;
    uint cols;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer Pred { float pred[]; };
layout(set = 0, binding = 1) readonly buffer Target { float target_values[]; };
layout(set = 0, binding = 2) readonly buffer Step { float step_values[]; };
layout(set = 0, binding = 3) writeonly buffer RowLoss { float row_loss[]; };
layout(set = 0, binding = 4) buffer Dpred { float dpred[]; };

#define GRADIENT 2u

void main() {
    uint row = group_index();
    if (row >= rows) return;
    uint lane = gl_LocalInvocationID.x;
    uint start = row * cols;
    float scale = step_values[STEP_LOSS_SCALE];
    bool valid = float(row) < step_values[STEP_VALID_ROWS];

    float sum = 0.0;
    for (uint c = lane; c < cols; c += LANES) {
        uint at = start + c;
        float error = valid ? pred[at] - target_values[at] : 0.0;
        sum += error * error;
        if ((flags & GRADIENT) != 0u) {
            float value = 2.0 * scale * error;
            dpred[at] = (flags & ACCUMULATE) != 0u ? dpred[at] + value : value;
        }
    }
    sum = reduce_sum(sum);
    if (lane == 0u) row_loss[row] = scale * sum;
}
