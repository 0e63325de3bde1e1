#version 450
#extension GL_GOOGLE_include_directive : require
// y[o, i, :] (+)= x[o, ids[i], :]. See gather.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint outer;
    uint axis_len;
    uint count;
    uint inner;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Ids { int ids[]; };
layout(set = 0, binding = 2) buffer Y { float y[]; };

#include "common.glsl"

void main() {
    uint at = item_index();
    if (at >= outer * count * inner) return;
    uint id = uint(ids[at / inner % count]);
    uint o = at / (inner * count);
    float value = id < axis_len ? x[(o * axis_len + id) * inner + at % inner] : NOT_A_NUMBER;
    y[at] = (flags & ACCUMULATE) != 0u ? y[at] + value : value;
}
