#version 450
#extension GL_GOOGLE_include_directive : require
// y[i, :] (+)= dequantized row ids[i] of W, stored as [rows, width]. See gather.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint count;
    uint width;
    uint rows;
    uint flags;
};
#define WEIGHT_BINDING 0
#include "scheme.glsl"
layout(set = 0, binding = 3) readonly buffer Ids { int ids[]; };
layout(set = 0, binding = 4) buffer Y { float y[]; };

#include "common.glsl"

void main() {
    uint i = item_index();
    if (i >= count * width) return;
    uint row = uint(ids[i / width]);
    uint c = i % width;
    float value = row < rows ? weight(row * width + c, c, row) : NOT_A_NUMBER;
    y[i] = (flags & ACCUMULATE) != 0u ? y[i] + value : value;
}
