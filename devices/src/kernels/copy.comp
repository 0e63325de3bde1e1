#version 450
#extension GL_GOOGLE_include_directive : require
// dst[dst_offset + i] (+)= src[src_offset + i], both strided. See copy.rs.

layout(local_size_x = 256) in;

layout(push_constant) uniform Params {
    uint dims[6];
    uint src_strides[6];
    uint dst_strides[6];
    uint src_offset;
    uint dst_offset;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer Src { float src[]; };
layout(set = 0, binding = 1) buffer Dst { float dst[]; };

#include "common.glsl"

void main() {
    uint rest = item_index();
    if (rest >= dims[0] * dims[1] * dims[2] * dims[3] * dims[4] * dims[5]) return;
    uint from = src_offset;
    uint to = dst_offset;
    for (int d = 5; d >= 0; d--) {
        uint index = rest % dims[d];
        rest /= dims[d];
        from += index * src_strides[d];
        to += index * dst_strides[d];
    }
    dst[to] = (flags & ACCUMULATE) != 0u ? dst[to] + src[from] : src[from];
}
