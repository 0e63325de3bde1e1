#version 450
#extension GL_GOOGLE_include_directive : require
// y[r, c] = e^(x[r, c] - max) / sum; a row of -inf gives zeros. See softmax.rs. One workgroup a row.

#define LANES 64u
#include "rows.glsl"
#include "common.glsl"

layout(push_constant) uniform Params {
    uint rows;
    uint cols;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) buffer Y { float y[]; };

#define IN_PLACE 2u

void main() {
    uint row = group_index();
    if (row >= rows) return;
    uint lane = gl_LocalInvocationID.x;
    uint start = row * cols;
    bool in_place = (flags & IN_PLACE) != 0u;

    float largest = -INFINITE;
    for (uint c = lane; c < cols; c += LANES) largest = max(largest, in_place ? y[start + c] : x[start + c]);
    largest = reduce_max(largest);
    if (is_negative_infinity(largest)) {
        for (uint c = lane; c < cols; c += LANES) y[start + c] = 0.0;
        return;
    }
    float sum = 0.0;
    for (uint c = lane; c < cols; c += LANES) {
        float value = exp((in_place ? y[start + c] : x[start + c]) - largest);
        y[start + c] = value;
        sum += value;
    }
    sum = reduce_sum(sum);
    for (uint c = lane; c < cols; c += LANES) y[start + c] /= sum;
}
