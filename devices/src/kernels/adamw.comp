#version 450
#extension GL_GOOGLE_include_directive : require
// AdamW, as PyTorch does it. See optimizer.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint len;
    float beta1;
    float beta2;
    float eps;
    float weight_decay;
};
layout(set = 0, binding = 0) buffer Parameters { float parameters[]; };
layout(set = 0, binding = 1) readonly buffer Grads { float grads[]; };
layout(set = 0, binding = 2) buffer M { float m[]; };
layout(set = 0, binding = 3) buffer V { float v[]; };
layout(set = 0, binding = 4) readonly buffer Step { float step_values[]; };
layout(set = 0, binding = 5) readonly buffer Stats { float stats[]; };

#include "common.glsl"
#include "step.glsl"

void main() {
    uint i = item_index();
    if (i >= len) return;
    float lr = step_values[STEP_LR];
    float g = stats[STATS_CLIP] * grads[i];
    float first = beta1 * m[i] + (1.0 - beta1) * g;
    float second = beta2 * v[i] + (1.0 - beta2) * g * g;
    m[i] = first;
    v[i] = second;
    float denominator = sqrt(second / step_values[STEP_BIAS_CORRECTION_2]) + eps;
    parameters[i] = parameters[i] * (1.0 - lr * weight_decay) - lr * (first / step_values[STEP_BIAS_CORRECTION_1]) / denominator;
}
