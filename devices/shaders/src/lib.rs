//! Compiles kernels/*.comp to the committed SPIR-V.
