"""Writes what the fuzzers start from: `corpus/*/seed-*`. Needs onnx, numpy and blake3.

    python make_seeds.py
"""

import io
import json
import struct
from pathlib import Path

import numpy as np
from blake3 import blake3
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
TINY = HERE.parent.parent / "runtime/tests/data/tiny/model.onnx"


def put(target: str, name: str, content: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(content)


def value(name, dims, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, dims)


def tensor(name, *dims):
    return numpy_helper.from_array(np.arange(np.prod(dims), dtype=np.float32).reshape(dims), name)


def model(nodes, weights=(), inputs=None, functions=(), opset=21):
    domains = {n.domain for n in nodes} | {f.domain for f in functions}
    opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains if d]
    inputs = inputs or [value("x", ["batch", 2])]
    graph = helper.make_graph(list(nodes), "g", inputs, [value("y", None)], list(weights))
    built = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    built.ClearField("producer_name")
    return built.SerializeToString()


def node(op, inputs, outputs, name="", domain="", **attributes):
    return helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)


def onnx_seeds() -> None:
    linears = [
        node("Gemm", ["x", "w", "b"], ["h"], "fc1", transB=1, alpha=0.5),
        node("Relu", ["h"], ["r"], "relu"),
        node("MatMul", ["r", "v"], ["y"], "fc2"),
    ]
    put("onnx", "linears", model(linears, [tensor("w", 3, 2), tensor("b", 3), tensor("v", 3, 2)]))
    typed = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])
    half = helper.make_tensor("c", TensorProto.FLOAT16, [2], [1, 2])
    put("onnx", "typed", model([node("MatMul", ["x", "w"], ["h"]), node("Cast", ["c"], ["d"], to=1),
                                node("Mul", ["h", "d"], ["y"])], [typed, half], opset=13))
    conv = [
        node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1]),
        node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"], "norm"),
        node("GlobalAveragePool", ["n"], ["p"]),
        node("Flatten", ["p"], ["y"], axis=1),
    ]
    put("onnx", "conv", model(conv, [tensor("w", 2, 1, 3, 3), tensor("s", 2)], [value("x", ["b", 1, 4, 4])]))
    constants = [
        node("Constant", [], ["c"], value=tensor("", 2)),
        node("Constant", [], ["k"], value_ints=[1, -1]),
        node("Reshape", ["x", "k"], ["r"]),
        node("Dropout", ["r"], ["d"]),
        node("Sum", ["d", "c", "x"], ["y"]),
    ]
    put("onnx", "constants", model(constants))
    leaky = NodeProto(op_type="LeakyRelu", input=["a"], output=["h"])
    leaky.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "Inner", ["a"], ["b"], [leaky, node("Relu", ["h"], ["b"])], opset, ["slope"])
    outer = helper.make_function(
        "own", "Outer", ["a", "w"], ["b"],
        [node("MatMul", ["a", "w"], ["m"]), node("Inner", ["m"], ["b"], domain="own", slope=0.25)], opset,
    )
    calls = [node("Outer", ["x", "w"], ["h"], "one", "own"), node("Outer", ["h", "w"], ["y"], "two", "own")]
    put("onnx", "functions", model(calls, [tensor("w", 2, 2)], functions=[inner, outer]))
    fused = [
        node("SkipLayerNormalization", ["x", "x", "g"], ["n"], domain="com.microsoft", epsilon=1e-5),
        node("BiasGelu", ["n", "g"], ["h"], domain="com.microsoft"),
        node("SimplifiedLayerNormalization", ["h", "g"], ["i"], axis=-1),
        node("FusedMatMul", ["i", "w"], ["y"], domain="com.microsoft", transB=1, alpha=2.0),
    ]
    put("onnx", "fused", model(fused, [tensor("g", 2), tensor("w", 2, 2)]))
    attention = [node("Attention", ["x", "x", "x"], ["a"], q_num_heads=2, kv_num_heads=1, is_causal=1),
                 node("Gather", ["t", "i"], ["e"]), node("Add", ["a", "e"], ["y"])]
    put("onnx", "attention", model(attention, [tensor("t", 4, 2)], [value("x", ["b", 3, 4]), value("i", ["b", 3], 7)], opset=23))
    cache = [node("Concat", ["past_key_values.0.key", "x"], ["present.0.key"], axis=1),
             node("MatMul", ["present.0.key", "w"], ["y"])]
    put("onnx", "cache", model(cache, [tensor("w", 2, 2)], [value("x", ["b", 2]), value("past_key_values.0.key", ["b", 0])]))


def other_seeds() -> None:
    for name, text in dict(plain="w\n0\n64\n4,4", whole="w\n\n\n16", part="w\n16\n8\n2", deep="sub/w\n0\n16\n4", dot="./w\n0\n4\n",
                           out="out\n0\n4\n1", up="../secret\n0\n4\n1", link="up/secret\n0\n4\n1", rooted="/etc/passwd\n0\n4\n1",
                           inner="in\n0\n4\n1", past="w\n64\n1\n1", huge="w\n18446744073709551615\n1\n1",
                           long="w\n0\n18446744073709551615\n4611686018427387904,4", negative="w\n-4\n4\n-1,-1").items():
        put("external", name, text.encode())
    for dtype in ("<f4", "<f8", "<i8", "<i2", "|u1", "|b1", "<u8"):
        content = io.BytesIO()
        np.save(content, np.ones((2, 2), dtype))
        put("npz", dtype[1:], content.getvalue())
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros((0, 3), np.float32), version=(2, 0))
    put("npz", "version2", content.getvalue())
    content = io.BytesIO()
    np.save(content, np.array([{}], dtype=object), allow_pickle=True)
    put("npz", "pickle", content.getvalue())
    for name, save in dict(stored=np.savez, deflated=np.savez_compressed).items():
        content = io.BytesIO()
        save(content, x=np.ones((2, 3), np.float32), labels=np.array([0, 1]))
        put("npz", name, content.getvalue())
    lora = dict(peft_type="LORA", r=1, lora_alpha=2, use_rslora=False, target_modules=["fc1"], bias="none")
    shapes = {"base_model.model.fc1.lora_A.weight": [1, 3], "base_model.model.fc1.lora_B.weight": [8, 1]}
    ia3 = dict(peft_type="IA3", target_modules=["fc1"], feedforward_modules=[])
    for name, settings, tensors in [
        ("lora", lora, shapes),
        ("rslora", {**lora, "use_rslora": True, "rank_pattern": {}}, shapes),
        ("half", lora, dict(list(shapes.items())[:1])),
        ("ia3", ia3, {"base_model.model.fc1.ia3_l": [8, 1]}),
    ]:
        put("peft", name, peft(settings, tensors))
    put("base", "tiny", TINY.read_bytes())


def peft(settings: dict, tensors: dict) -> bytes:
    header, data = {}, b""
    for key, shape in tensors.items():
        values = np.ones(shape, np.float32).tobytes()
        header[key] = dict(dtype="F32", shape=shape, data_offsets=[len(data), len(data) + len(values)])
        data += values
    header, settings = json.dumps(header).encode(), json.dumps(settings).encode()
    return struct.pack("<H", len(settings)) + settings + struct.pack("<Q", len(header)) + header + data


def stranger(parts: list, payload: bytes, version: int = 3) -> bytes:
    """Kind, encoding, rank, alpha or None, then path and sizes of the tensors, of each part."""
    body = bytes([version - 1]) + (bytes([len(parts)]) if version > 1 else b"")
    for kind, encoding, rank, alpha, path, *sizes in parts:
        body += bytes([kind, encoding, rank]) + (b"" if alpha is None else struct.pack("<f", alpha)) + b"\x01"
        body += blake3(path.encode()).digest()[:8] + bytes([len(sizes)])
        body += b"".join(bytes([size] if version == 1 else size) for size in sizes)
    return body + payload


def stranger_seeds() -> None:
    floats = struct.pack("<11f", *range(1, 12))
    put("stranger", "v1", stranger([(1, 0, 1, 2.0, "fc1", 3, 8)], floats, 1))
    put("stranger", "v2", stranger([(1, 0, 1, 2.0, "fc1", (1, 3), (1, 8))], floats, 2))
    lora = (1, 0x20, 1, 2.0, "fc1", (0, 3), (0, 8))
    put("stranger", "f32", stranger([lora], floats))
    put("stranger", "f16", stranger([(1, 0x21, *lora[2:])], np.arange(1, 12).astype("<f2").tobytes()))
    scale = np.float16(0.5).tobytes()
    put("stranger", "int8", stranger([(1, 0x22, *lora[2:])], scale + bytes(range(3)) + scale + bytes(range(8))))
    int4 = stranger([(1, 0x23, *lora[2:])], scale + bytes([0x18, 0x07]) + scale + bytes(range(0, 128, 32)))
    put("stranger", "int4", int4)
    put("stranger", "bias", stranger([(2, 0, 0, None, "fc1.bias", (1, 8))], floats[:32]))
    put("stranger", "dense", stranger([(4, 0, 0, None, "fc1", (8, 3))], struct.pack("<24f", *range(24))))
    both = [lora, (4, 0, 0, None, "head", (2, 8))]
    put("stranger", "two", stranger(both, floats + struct.pack("<16f", *range(16))))


def sealed_seeds() -> None:
    put("sealed_file", "same", bytes(8))
    put("sealed_file", "nonce", bytes(13) + b"\x01")
    put("sealed_file", "cut", bytes(40) + b"\x10")
    put("sealed_file", "magic", b"INLX\x01" + bytes(60))


if __name__ == "__main__":
    onnx_seeds()
    other_seeds()
    stranger_seeds()
    sealed_seeds()
