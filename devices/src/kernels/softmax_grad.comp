#version 450
#extension GL_GOOGLE_include_directive : require
// dx[r, c] (+)= y[r, c] (dy[r, c] - sum_j dy[r, j] y[r, j]). See softmax.rs. One workgroup a row.

#define LANES 64u
#include "rows.glsl"
#include "common.glsl"

layout(push_constant) uniform Params {
    uint rows;
    uint cols;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer Y { float y[]; };
layout(set = 0, binding = 1) readonly buffer Dy { float dy[]; };
layout(set = 0, binding = 2) buffer Dx { float dx[]; };

#define IN_PLACE 2u

void main() {
    uint row = group_index();
    if (row >= rows) return;
    uint lane = gl_LocalInvocationID.x;
    uint start = row * cols;
    bool in_place = (flags & IN_PLACE) != 0u;

    float dot_product = 0.0;
    for (uint c = lane; c < cols; c += LANES) {
        uint at = start + c;
        dot_product += y[at] * (in_place ? dx[at] : dy[at]);
    }
    dot_product = reduce_sum(dot_product);
    for (uint c = lane; c < cols; c += LANES) {
        uint at = start + c;
        float value = y[at] * ((in_place ? dx[at] : dy[at]) - dot_product);
        dx[at] = (flags & ACCUMULATE) != 0u ? dx[at] + value : value;
    }
}
