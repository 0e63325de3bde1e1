#version 450
#extension GL_GOOGLE_include_directive : require
// dx[o, a, :] (+)= sum of dy[o, i, :] over the i with ids[i] = a. See gather.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint outer;
    uint axis_len;
    uint count;
    uint inner;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer Dy { float dy[]; };
layout(set = 0, binding = 1) readonly buffer Ids { int ids[]; };
layout(set = 0, binding = 2) buffer Dx { float dx[]; };

#include "common.glsl"

void main() {
    uint at = item_index();
    if (at >= outer * axis_len * inner) return;
    uint a = at / inner % axis_len;
    uint o = at / (inner * axis_len);
    float sum = (flags & ACCUMULATE) != 0u ? dx[at] : 0.0;
    for (uint i = 0u; i < count; i++) {
        if (uint(ids[i]) == a) sum += dy[(o * count + i) * inner + at % inner];
    }
    dx[at] = sum;
}
