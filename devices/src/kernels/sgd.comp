#version 450
#extension GL_GOOGLE_include_directive : require
// Stochastic gradient descent, as PyTorch does it. See optimizer.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint len;
    float momentum;
    float weight_decay;
};
layout(set = 0, binding = 0) buffer Parameters { float parameters[]; };
layout(set = 0, binding = 1) readonly buffer Grads { float grads[]; };
layout(set = 0, binding = 2) buffer M { float m[]; };
layout(set = 0, binding = 3) readonly buffer Step { float step_values[]; };
layout(set = 0, binding = 4) readonly buffer Stats { float stats[]; };

#include "common.glsl"
#include "step.glsl"

void main() {
    uint i = item_index();
    if (i >= len) return;
    float g = stats[STATS_CLIP] * grads[i] + weight_decay * parameters[i];
    if (momentum != 0.0) {
        if (step_values[STEP_FIRST] == 0.0) g += momentum * m[i];
        m[i] = g;
    }
    parameters[i] -= step_values[STEP_LR] * g;
}
