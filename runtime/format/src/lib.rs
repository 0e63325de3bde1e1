//! Formats of Inlay: quantization layouts, insertion points, the adapter record.
