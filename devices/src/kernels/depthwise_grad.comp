#version 450
#extension GL_GOOGLE_include_directive : require
// dx[b, h, w, c] (+)= sum of dy W over the windows that the pixel is in. See depthwise.rs.

layout(local_size_x = 256) in;

#include "depthwise.glsl"
layout(set = 0, binding = 0) readonly buffer Dy { float dy[]; };
#define WEIGHT_BINDING 1
#include "scheme.glsl"
layout(set = 0, binding = 4) buffer Dx { float dx[]; };

#include "common.glsl"

void main() {
    uint at = item_index();
    if (at >= batch * h * w * channels) return;
    uint c = at % channels;
    uint col = at / channels % w;
    uint row = at / (channels * w) % h;
    uint b = at / (channels * w * h);
    uint taps = kernel_h * kernel_w;
    float sum = (flags & ACCUMULATE) != 0u ? dx[at] : 0.0;
    for (uint i = 0u; i < kernel_h; i++) {
        uint from_row = row + pad_top - i * dilation_h;
        uint ho = from_row / stride_h;
        if (row + pad_top < i * dilation_h || from_row % stride_h != 0u || ho >= out_h) continue;
        for (uint j = 0u; j < kernel_w; j++) {
            uint from_col = col + pad_left - j * dilation_w;
            uint wo = from_col / stride_w;
            if (col + pad_left < j * dilation_w || from_col % stride_w != 0u || wo >= out_w) continue;
            uint tap = i * kernel_w + j;
            uint window = ((b * out_h + ho) * out_w + wo) * channels * multiplier;
            for (uint n = c * multiplier; n < (c + 1u) * multiplier; n++) {
                sum += dy[window + n] * weight(n * taps + tap, tap, n);
            }
        }
    }
    dx[at] = sum;
}
