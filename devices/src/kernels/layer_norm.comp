#version 450
#extension GL_GOOGLE_include_directive : require
// y = (x - mean) rstd gamma + beta over each row, mean = 0 if uncentred; stats[r] = (mean, rstd). See layer_norm.rs. One workgroup a row.

#define LANES 64u
#include "rows.glsl"
#include "common.glsl"

layout(push_constant) uniform Params {
    uint rows;
    uint cols;
    float eps;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Gamma { float gamma[]; };
layout(set = 0, binding = 2) readonly buffer Beta { float beta[]; };
layout(set = 0, binding = 3) writeonly buffer Y { float y[]; };
layout(set = 0, binding = 4) writeonly buffer Stats { float stats[]; };

#define GAMMA 2u
#define BETA 4u
#define UNCENTRED 8u

void main() {
    uint row = group_index();
    if (row >= rows) return;
    uint lane = gl_LocalInvocationID.x;
    uint start = row * cols;

    float mean = 0.0;
    if ((flags & UNCENTRED) == 0u) {
        for (uint c = lane; c < cols; c += LANES) mean += x[start + c];
        mean = reduce_sum(mean) / float(cols);
    }
    float variance = 0.0;
    for (uint c = lane; c < cols; c += LANES) {
        float centred = x[start + c] - mean;
        variance += centred * centred;
    }
    variance = reduce_sum(variance) / float(cols);
    float rstd = 1.0 / sqrt(variance + eps);

    for (uint c = lane; c < cols; c += LANES) {
        float value = (x[start + c] - mean) * rstd;
        if ((flags & GAMMA) != 0u) value *= gamma[c];
        if ((flags & BETA) != 0u) value += beta[c];
        y[start + c] = value;
    }
    if (lane == 0u) {
        stats[2u * row] = mean;
        stats[2u * row + 1u] = rstd;
    }
}
