#version 450
#extension GL_GOOGLE_include_directive : require
// dx (+)= rstd (g - mean_c(g) - n mean_c(g n)), without mean_c(g) if uncentred; g = dy gamma, n = (x - mean) rstd.
// See layer_norm.rs. One workgroup a row.

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
layout(set = 0, binding = 2) readonly buffer Stats { float stats[]; };
layout(set = 0, binding = 3) readonly buffer Dy { float dy[]; };
layout(set = 0, binding = 4) buffer Dx { float dx[]; };

#define GAMMA 2u
#define UNCENTRED 8u

void main() {
    uint row = group_index();
    if (row >= rows) return;
    uint lane = gl_LocalInvocationID.x;
    uint start = row * cols;
    float mean = stats[2u * row];
    float rstd = stats[2u * row + 1u];

    float sum = 0.0;
    float dot_product = 0.0;
    for (uint c = lane; c < cols; c += LANES) {
        float g = dy[start + c] * ((flags & GAMMA) != 0u ? gamma[c] : 1.0);
        sum += g;
        dot_product += g * (x[start + c] - mean) * rstd;
    }
    sum = (flags & UNCENTRED) != 0u ? 0.0 : reduce_sum(sum) / float(cols);
    dot_product = reduce_sum(dot_product) / float(cols);
    for (uint c = lane; c < cols; c += LANES) {
        uint at = start + c;
        float g = dy[at] * ((flags & GAMMA) != 0u ? gamma[c] : 1.0);
        float value = rstd * (g - sum - (x[at] - mean) * rstd * dot_product);
        dx[at] = (flags & ACCUMULATE) != 0u ? dx[at] + value : value;
    }
}
