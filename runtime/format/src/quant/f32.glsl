// Decodes f32 weights. Include after defining WEIGHT_BINDING, the number of the weight's first binding.
// `at` is the position of element (k, n) among the packed elements.
//   weight(at, k, n)           that element
//   weight4_along_k(at, k, n)  elements (k .. k + 3, n) of a weight stored as [N, K]; all must exist
//   weight4_along_n(at, k, n)  elements (k, n .. n + 3) of a weight stored as [K, N]; all must exist

layout(set = 0, binding = WEIGHT_BINDING) readonly buffer Packed { float packed_elements[]; };

float weight(uint at, uint k, uint n) {
    return packed_elements[at];
}

vec4 weight4_along_k(uint at, uint k, uint n) {
    return vec4(packed_elements[at], packed_elements[at + 1u], packed_elements[at + 2u], packed_elements[at + 3u]);
}

vec4 weight4_along_n(uint at, uint k, uint n) {
    return weight4_along_k(at, k, n);
}
