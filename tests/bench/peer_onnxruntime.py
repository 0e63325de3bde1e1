"""One training step of MiniLM with LoRA in onnxruntime-training, f32: median milliseconds as JSON.

    python peer_onnxruntime.py --minilm DIR --batch-size N --seq N --threads N [--steps N]

The graph is tests/fixtures/minilm/classifier.onnx with rank-4 LoRA branches on query and value of every layer; only
those are trained, by AdamW on the cross-entropy. Needs onnxruntime-training-cpu, onnx, numpy.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

# The package's __init__ imports PyTorch, which nothing here needs: only its folder is registered.
sys.modules["onnxruntime.training"] = package = types.ModuleType("onnxruntime.training")
package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
from onnxruntime.training import artifacts  # noqa: E402
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402

RANK, ALPHA, CLASSES, VOCAB = 4, 8.0, 42, 30522


def fold_transposes(graph: onnx.GraphProto) -> None:
    """Transposes frozen weights ahead of time, as the exporter does by default."""
    weights = {i.name: i for i in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in weights]:
        value = numpy_helper.to_array(weights[node.input[0]])
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value.T), node.output[0]))
        graph.node.remove(node)
    used = {name for n in graph.node for name in n.input}
    for tensor in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(tensor)


def name_statistics(graph: onnx.GraphProto) -> None:
    """Names the optional outputs of LayerNormalization, which its gradient reads."""
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            node.output.extend([f"{node.output[0]}.mean", f"{node.output[0]}.inv_std"])


def insert_lora(graph: onnx.GraphProto) -> list:
    """Adds the branches; returns the names of their parameters."""
    rng = np.random.default_rng(0)
    weights = {i.name: i for i in graph.initializer}
    parameters = []
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "MatMul" or not node.name.endswith(("/query/MatMul", "/value/MatMul")):
            continue
        d_in, d_out = weights[node.input[1]].dims
        path = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
        a, b = f"{path}.lora_A", f"{path}.lora_B"
        values = {a: rng.uniform(-(d_in**-0.5), d_in**-0.5, (d_in, RANK)), b: np.zeros((RANK, d_out))}
        graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items())
        parameters += [a, b]
        base, output, scaling = f"{path}.base", node.output[0], f"{path}.scaling"
        graph.initializer.append(numpy_helper.from_array(np.float32(ALPHA / RANK), scaling))
        node.output[0] = base
        branch = [
            helper.make_node("MatMul", [node.input[0], a], [f"{path}.h"]),
            helper.make_node("MatMul", [f"{path}.h", b], [f"{path}.d"]),
            helper.make_node("Mul", [f"{path}.d", scaling], [f"{path}.s"]),
            helper.make_node("Add", [base, f"{path}.s"], [output]),
        ]
        for offset, new in enumerate(branch):
            graph.node.insert(index + 1 + offset, new)
    return parameters


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()

    model = onnx.load(args.minilm / "classifier.onnx")
    fold_transposes(model.graph)
    name_statistics(model.graph)
    parameters = insert_lora(model.graph)
    frozen = [i.name for i in model.graph.initializer if i.name not in parameters and i.data_type == 1]
    with tempfile.TemporaryDirectory() as folder:
        artifacts.generate_artifacts(
            model,
            requires_grad=parameters,
            frozen_params=frozen,
            loss=artifacts.LossType.CrossEntropyLoss,
            optimizer=artifacts.OptimType.AdamW,
            artifact_directory=folder,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
        train = f"{folder}/training_model.onnx"
        module = Module(train, state, f"{folder}/eval_model.onnx", session_options=options)
        optimizer = Optimizer(f"{folder}/optimizer_model.onnx", module)
    optimizer.set_learning_rate(1e-3)

    rng = np.random.default_rng(0)
    shape = (args.batch_size, args.seq)
    batch = [rng.integers(0, VOCAB, shape), np.ones(shape, np.int64), np.zeros(shape, np.int64)]
    labels = rng.integers(0, CLASSES, args.batch_size)
    module.train()
    times, losses = [], []
    for _ in range(args.steps + 5):
        start = time.perf_counter()
        losses.append(float(module(*batch, labels)))
        optimizer.step()
        module.lazy_reset_grad()
        times.append(1e3 * (time.perf_counter() - start))
    times = times[5:]
    assert losses[-1] < losses[0], losses
    result = dict(peer=f"onnxruntime-training {onnxruntime.__version__} f32", batch_size=args.batch_size, seq=args.seq)
    result |= dict(threads=args.threads, steps=args.steps, ms_per_step=statistics.median(times), min_ms=min(times))
    print(json.dumps(result | dict(first_loss=losses[0], last_loss=losses[-1])))


if __name__ == "__main__":
    main()
