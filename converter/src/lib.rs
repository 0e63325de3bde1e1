//! The converter of Inlay: a trained ONNX model in, a frozen quantized base with insertion points out.
