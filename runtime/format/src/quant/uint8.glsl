// Decodes uint8 with a scale and a zero point per output n, or per block along k of a weight stored as [N, K]. Include after
// defining WEIGHT_BINDING, the number of the weight's first binding; its scales are the next one, its zero points the one
// after. `at` is the position of element (k, n) among the packed elements. `flags` of the including body holds the weight's
// form (weight.rs).
//   weight(at, k, n)           that element
//   weight4_along_k(at, k, n)  elements (k .. k + 3, n) of a weight stored as [N, K], k a multiple of 4; all must exist
//   weight4_along_n(at, k, n)  elements (k, n .. n + 3) of a weight stored as [K, N]; all must exist

layout(set = 0, binding = WEIGHT_BINDING) readonly buffer Packed { uint packed_words[]; };
layout(set = 0, binding = WEIGHT_BINDING + 1) readonly buffer Scales { float scales[]; };
layout(set = 0, binding = WEIGHT_BINDING + 2) readonly buffer ZeroPoints { uint zero_point_words[]; };

#define WEIGHT_BLOCK_SHIFT 12

// A row is a whole number of blocks: its elements and its scales are numbered on from the row before.
uint block_of(uint at, uint n) {
    uint shift = (flags >> WEIGHT_BLOCK_SHIFT) & 15u;
    return shift == 0u ? n : at >> shift;
}

float zero_point(uint block) {
    return float(bitfieldExtract(zero_point_words[block >> 2], int(block & 3u) * 8, 8));
}

vec4 elements4(uint at) {
    uint word = packed_words[at >> 2];
    uint shift = (at & 3u) * 8u;
    if (shift != 0u) word = (word >> shift) | (packed_words[(at >> 2) + 1u] << (32u - shift));
    return vec4(uvec4(word, word >> 8, word >> 16, word >> 24) & 255u);
}

float weight(uint at, uint k, uint n) {
    uint block = block_of(at, n);
    float q = float(bitfieldExtract(packed_words[at >> 2], int(at & 3u) * 8, 8));
    return (q - zero_point(block)) * scales[block];
}

vec4 weight4_along_k(uint at, uint k, uint n) {
    uint block = block_of(at, n);
    return (elements4(at) - zero_point(block)) * scales[block];
}

vec4 weight4_along_n(uint at, uint k, uint n) {
    vec4 zero_points = vec4(zero_point(n), zero_point(n + 1u), zero_point(n + 2u), zero_point(n + 3u));
    return (elements4(at) - zero_points) * vec4(scales[n], scales[n + 1u], scales[n + 2u], scales[n + 3u]);
}
