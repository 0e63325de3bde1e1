#version 450
#extension GL_GOOGLE_include_directive : require
// y[i] (+)= f(x[i]), or dy[i] f'(x[i]). See unary.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint len;
    uint op;
    uint flags;
    float a;
    float b;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Dy { float dy[]; };
layout(set = 0, binding = 2) buffer Y { float y[]; };

#include "common.glsl"
#include "functions.glsl"

#define GRADIENT 2u

void main() {
    uint i = item_index();
    if (i >= len) return;
    float value = (flags & GRADIENT) != 0u ? dy[i] * slope(op, x[i], a, b) : value_of(op, x[i], a, b);
    y[i] = (flags & ACCUMULATE) != 0u ? y[i] + value : value;
}
