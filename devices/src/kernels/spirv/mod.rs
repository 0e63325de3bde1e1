//! The compiled compute shaders, by name. Written by `cargo run -p shaders`; do not edit.

/// `(name, SPIR-V)` of every module: `<kernel>`, or `<kernel>.<scheme>` for one per quantization scheme.
pub const ALL: &[(&str, &[u8])] = &[
    ("linear.f32", include_bytes!("linear.f32.spv")),
    ("linear.int8", include_bytes!("linear.int8.spv")),
    ("unary", include_bytes!("unary.spv")),
];
