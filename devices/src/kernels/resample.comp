#version 450
#extension GL_GOOGLE_include_directive : require
// y[o, i, :] (+)= sum_t w[i, t] x[o, first[i] + t, :]. See resample.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint outer;
    uint x_len;
    uint y_len;
    uint inner;
    uint taps;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer First { int first[]; };
layout(set = 0, binding = 2) readonly buffer W { float w[]; };
layout(set = 0, binding = 3) buffer Y { float y[]; };

#include "common.glsl"

void main() {
    uint at = item_index();
    if (at >= outer * y_len * inner) return;
    uint i = at / inner % y_len;
    uint o = at / (inner * y_len);
    uint from = uint(first[i]);
    float sum = NOT_A_NUMBER;
    // A negative start is larger than any length.
    if (from < x_len && from + taps <= x_len) {
        sum = 0.0;
        for (uint t = 0u; t < taps; t++) {
            sum += w[i * taps + t] * x[(o * x_len + from + t) * inner + at % inner];
        }
    }
    y[at] = (flags & ACCUMULATE) != 0u ? y[at] + sum : sum;
}
