#version 450
#extension GL_GOOGLE_include_directive : require
// y[i] (+)= f(a[i], b[i]) with broadcasting. See binary.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint dims[5];
    uint a_strides[5];
    uint b_strides[5];
    uint op;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer A { float a[]; };
layout(set = 0, binding = 1) readonly buffer B { float b[]; };
layout(set = 0, binding = 2) buffer Y { float y[]; };

#include "common.glsl"
#include "functions.glsl"

float value_of(float a, float b) {
    switch (op) {
        case 0u: return a + b;
        case 1u: return a - b;
        case 2u: return a * b;
        case 3u: return a / b;
        case 4u: return max(a, b);
        case 5u: return min(a, b);
        case 6u: return pow_of(a, b);
        case 7u: return float(a == b);
        case 8u: return float(a > b);
        case 9u: return float(a >= b);
        case 10u: return float(a < b);
        default: return float(a <= b);
    }
}

void main() {
    uint i = item_index();
    if (i >= dims[0] * dims[1] * dims[2] * dims[3] * dims[4]) return;
    uint at_a = 0u;
    uint at_b = 0u;
    uint rest = i;
    for (int d = 4; d >= 0; d--) {
        uint index = rest % dims[d];
        rest /= dims[d];
        at_a += index * a_strides[d];
        at_b += index * b_strides[d];
    }
    float value = value_of(a[at_a], b[at_b]);
    y[i] = (flags & ACCUMULATE) != 0u ? y[i] + value : value;
}
