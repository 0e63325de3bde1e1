#version 450
#extension GL_GOOGLE_include_directive : require
// y[i] = value. See fill.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint len;
    float value;
};
layout(set = 0, binding = 0) writeonly buffer Y { float y[]; };

#include "common.glsl"

void main() {
    uint i = item_index();
    if (i < len) y[i] = value;
}
