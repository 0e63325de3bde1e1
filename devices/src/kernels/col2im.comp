#version 450
#extension GL_GOOGLE_include_directive : require
// x[b, c, h, w] (+)= sum of the places in cols that it was copied to. See im2col.rs.

layout(local_size_x = 256) in;

#include "im2col.glsl"
layout(set = 0, binding = 0) readonly buffer Cols { float cols[]; };
layout(set = 0, binding = 1) buffer X { float x[]; };

#include "common.glsl"

void main() {
    uint at = item_index();
    if (at >= batch * channels * h * w) return;
    uint col = at % w;
    uint row = at / w % h;
    uint c = at / (w * h) % channels;
    uint b = at / (w * h * channels);
    float sum = (flags & ACCUMULATE) != 0u ? x[at] : 0.0;
    for (uint i = 0u; i < kernel_h; i++) {
        uint from_row = row + pad_top - i * dilation_h;
        uint ho = from_row / stride_h;
        if (row + pad_top < i * dilation_h || from_row % stride_h != 0u || ho >= out_h) continue;
        for (uint j = 0u; j < kernel_w; j++) {
            uint from_col = col + pad_left - j * dilation_w;
            uint wo = from_col / stride_w;
            if (col + pad_left < j * dilation_w || from_col % stride_w != 0u || wo >= out_w) continue;
            uint window = (b * out_h + ho) * out_w + wo;
            sum += cols[((window * channels + c) * kernel_h + i) * kernel_w + j];
        }
    }
    x[at] = sum;
}
