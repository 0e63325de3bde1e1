// One workgroup a row: reductions over the invocations of a workgroup of LANES, a power of two. Every invocation must
// call them, and every one gets the result. The order of the sum is fixed.

layout(local_size_x = LANES) in;

shared float partial[LANES];

float reduce_sum(float value) {
    uint lane = gl_LocalInvocationID.x;
    partial[lane] = value;
    barrier();
    for (uint half_lanes = LANES / 2u; half_lanes > 0u; half_lanes /= 2u) {
        if (lane < half_lanes) partial[lane] += partial[lane + half_lanes];
        barrier();
    }
    float total = partial[0];
    barrier();
    return total;
}

float reduce_max(float value) {
    uint lane = gl_LocalInvocationID.x;
    partial[lane] = value;
    barrier();
    for (uint half_lanes = LANES / 2u; half_lanes > 0u; half_lanes /= 2u) {
        if (lane < half_lanes) partial[lane] = max(partial[lane], partial[lane + half_lanes]);
        barrier();
    }
    float largest = partial[0];
    barrier();
    return largest;
}
