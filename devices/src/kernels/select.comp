#version 450
#extension GL_GOOGLE_include_directive : require
// y[i] (+)= cond[i] != 0 ? a[i] : b[i] with broadcasting. See select.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint dims[5];
    uint cond_strides[5];
    uint a_strides[5];
    uint b_strides[5];
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer Cond { float cond[]; };
layout(set = 0, binding = 1) readonly buffer A { float a[]; };
layout(set = 0, binding = 2) readonly buffer B { float b[]; };
layout(set = 0, binding = 3) buffer Y { float y[]; };

#include "common.glsl"

void main() {
    uint i = item_index();
    if (i >= dims[0] * dims[1] * dims[2] * dims[3] * dims[4]) return;
    uint at_cond = 0u;
    uint at_a = 0u;
    uint at_b = 0u;
    uint rest = i;
    for (int d = 4; d >= 0; d--) {
        uint index = rest % dims[d];
        rest /= dims[d];
        at_cond += index * cond_strides[d];
        at_a += index * a_strides[d];
        at_b += index * b_strides[d];
    }
    float value = cond[at_cond] != 0.0 ? a[at_a] : b[at_b];
    y[i] = (flags & ACCUMULATE) != 0u ? y[i] + value : value;
}
