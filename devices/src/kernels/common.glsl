// Shared by every GPU body; include after the workgroup size is declared.

#define ACCUMULATE 1u

const float NOT_A_NUMBER = uintBitsToFloat(0x7fc00000u);
const float INFINITE = uintBitsToFloat(0x7f800000u);

// Drivers may assume that comparisons meet no infinities; bits do not lie.
bool is_negative_infinity(float x) {
    return floatBitsToUint(x) == 0xff800000u;
}

// Number of this workgroup where `cover` spread the groups over x and y.
uint group_index() {
    return gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
}

// Number of this invocation where `cover` spread items over workgroups.
uint item_index() {
    return group_index() * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
}
