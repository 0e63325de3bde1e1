#version 450
#extension GL_GOOGLE_include_directive : require
// y[kept] (+)= scale op_reduced x[kept, reduced]. See reduce.rs. One workgroup an element of y.

#define LANES 64u
#include "rows.glsl"
#include "common.glsl"

layout(push_constant) uniform Params {
    uint kept[4];
    uint kept_strides[4];
    uint reduced[4];
    uint reduced_strides[4];
    uint op;
    float scale;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) buffer Y { float y[]; };

#define SUM 0u
#define MIN 2u

void main() {
    uint i = group_index();
    if (i >= kept[0] * kept[1] * kept[2] * kept[3]) return;
    uint start = 0u;
    uint rest = i;
    for (int d = 3; d >= 0; d--) {
        start += rest % kept[d] * kept_strides[d];
        rest /= kept[d];
    }
    // The smallest is the largest of the negated.
    float direction = op == MIN ? -1.0 : 1.0;
    float value = op == SUM ? 0.0 : -INFINITE;
    uint count = reduced[0] * reduced[1] * reduced[2] * reduced[3];
    for (uint j = gl_LocalInvocationID.x; j < count; j += LANES) {
        uint at = start;
        rest = j;
        for (int d = 3; d >= 0; d--) {
            at += rest % reduced[d] * reduced_strides[d];
            rest /= reduced[d];
        }
        value = op == SUM ? value + x[at] : max(value, direction * x[at]);
    }
    value = op == SUM ? reduce_sum(value) : direction * reduce_max(value);
    if (gl_LocalInvocationID.x == 0u) {
        value *= scale;
        y[i] = (flags & ACCUMULATE) != 0u ? y[i] + value : value;
    }
}
