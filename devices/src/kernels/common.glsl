// Shared by every GPU body. Workgroups are linear unless a body says otherwise.

#define ACCUMULATE 1u

// Number of this workgroup where `cover` spread the groups over x and y.
uint group_index() {
    return gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
}

// Number of this invocation where `cover` spread items over workgroups.
uint item_index() {
    return group_index() * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
}
