// Decodes int4 in blocks along k, stored as [N, K]. Include after defining WEIGHT_BINDING, the number of the weight's first
// binding; its scales are the next one, its zero points the one after. `at` is the position of element (k, n) among the
// packed elements. `flags` of the including body holds the weight's form (weight.rs).
//   weight(at, k, n)           that element
//   weight4_along_k(at, k, n)  elements (k .. k + 3, n), k a multiple of 4; all must exist
//   weight4_along_n(at, k, n)  of a weight stored as [K, N], which no int4 weight is

layout(set = 0, binding = WEIGHT_BINDING) readonly buffer Packed { uint packed_words[]; };
layout(set = 0, binding = WEIGHT_BINDING + 1) readonly buffer Scales { float scales[]; };
layout(set = 0, binding = WEIGHT_BINDING + 2) readonly buffer ZeroPoints { uint zero_point_words[]; };

#define WEIGHT_ZERO_POINTS 0x100u
#define WEIGHT_PADDED 0x200u
#define WEIGHT_FLOAT_ZERO_POINTS 0x400u
#define WEIGHT_BLOCK_SHIFT 12

// A row is a whole number of blocks: its elements and its scales are numbered on from the row before.
uint block_of(uint at) {
    return at >> ((flags >> WEIGHT_BLOCK_SHIFT) & 15u);
}

float zero_point(uint block, uint n) {
    if ((flags & WEIGHT_FLOAT_ZERO_POINTS) != 0u) return uintBitsToFloat(zero_point_words[block]);
    if ((flags & WEIGHT_ZERO_POINTS) == 0u) return 8.0;
    uint at = (flags & WEIGHT_PADDED) != 0u ? block + n : block;
    return float(bitfieldExtract(zero_point_words[at >> 3], int(at & 7u) * 4, 4));
}

float weight(uint at, uint k, uint n) {
    uint block = block_of(at);
    float q = float(bitfieldExtract(packed_words[at >> 3], int(at & 7u) * 4, 4));
    return (q - zero_point(block, n)) * scales[block];
}

vec4 weight4_along_k(uint at, uint k, uint n) {
    uint block = block_of(at);
    uint word = packed_words[at >> 3] >> ((at & 4u) * 4u);
    vec4 q = vec4(uvec4(word, word >> 4, word >> 8, word >> 12) & 15u);
    return (q - zero_point(block, n)) * scales[block];
}

vec4 weight4_along_n(uint at, uint k, uint n) {
    return vec4(0.0);
}
