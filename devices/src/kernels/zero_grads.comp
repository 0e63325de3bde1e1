#version 450
#extension GL_GOOGLE_include_directive : require
// grads[i] = 0, unless step says that this batch adds to them. See optimizer.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint len;
};
layout(set = 0, binding = 0) readonly buffer Step { float step_values[]; };
layout(set = 0, binding = 1) buffer Grads { float grads[]; };

#include "common.glsl"
#include "step.glsl"

void main() {
    uint i = item_index();
    if (i < len && step_values[STEP_ACCUMULATE] == 0.0) grads[i] = 0.0;
}
