#version 450
#extension GL_GOOGLE_include_directive : require
// cols[(b, ho, wo), (c, i, j)] = x[b, c, ho sh + i dh - pt, wo sw + j dw - pl], 0 outside of x. See im2col.rs.

layout(local_size_x = 256) in;

#include "im2col.glsl"
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) writeonly buffer Cols { float cols[]; };

#include "common.glsl"

void main() {
    uint at = item_index();
    if (at >= batch * out_h * out_w * channels * kernel_h * kernel_w) return;
    uint rest = at;
    uint j = rest % kernel_w;
    rest /= kernel_w;
    uint i = rest % kernel_h;
    rest /= kernel_h;
    uint c = rest % channels;
    rest /= channels;
    uint wo = rest % out_w;
    rest /= out_w;
    uint ho = rest % out_h;
    uint b = rest / out_h;
    // Before the first row or column these wrap around, and are larger than any size.
    uint row = ho * stride_h + i * dilation_h - pad_top;
    uint col = wo * stride_w + j * dilation_w - pad_left;
    cols[at] = row < h && col < w ? x[((b * channels + c) * h + row) * w + col] : 0.0;
}
