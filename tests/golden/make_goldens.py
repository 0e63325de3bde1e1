"""Writes the golden runs: what PyTorch + PEFT compute, step by step, from the same start as `personalize train`.

    python make_goldens.py [NAME ...]        (every name, unless told; the manifest is only written for every name)

Beside this script:
  manifest.json            every run: its files, its adapter, its optimizer, its arguments for `personalize train`
  SOURCE/model.onnx        the f32 model as an exporter wrote it; shared by runs
  NAME/data.npz            arrays named after the graph's inputs, and `labels`, in training order
  NAME/adapter/            the initial adapter as PEFT saves it: A and B random, B not zero
  NAME/{f32,int8,int4}.npz what PyTorch computes on that base:
      losses [steps], lrs [steps]            the mean loss of each step's batch, and its learning rate
      grad.PATH.lora_A / lora_B              gradients of the first step, before clipping, in PEFT's shapes
      final.PATH.lora_A / lora_B             parameters after the last step
      base_output, initial_output, final_output    over the whole of data.npz: no adapter, initial, trained

Models are in eval mode without dropout. The int8 base is the f32 model holding dequantized weights (`quantize`). The source
of an int4 run already holds weights that blocks of 16 levels give exactly (`sixteen_levels`), so that int4 changes nothing;
what stays out of int4 is int8.
Needs torch, transformers, peft, onnx, onnxscript, numpy, safetensors.
"""

import copy
import functools
import json
import logging
import shutil
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import numpy as np
import peft
import torch
from torch import nn
from transformers import get_scheduler

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "fixtures"))
import models  # noqa: E402
from traces import drop_stack_traces  # noqa: E402

TOKENS = ("input_ids", "attention_mask", "token_type_ids")
SMALLEST_QUANTIZED = 256  # elements; smaller weights stay f32
SPARED = 20  # of all packed elements, one in so many may be in small convolutions that are halves


@dataclass
class Source:
    """A model and its export."""

    model: Callable[[], nn.Module]
    names: tuple
    axes: dict
    dynamo: bool
    opset: int
    inputs: Callable[[int, torch.Generator], tuple]
    classes: int  # of the labels; 0: targets shaped like the output
    next_token: bool = False  # labels are the inputs one token on; padding and the last do not count
    folded: bool = True  # False: BatchNorm stays in the export and in the model that the adapter belongs to
    int4: str = ""  # "search" or "hqq": linears hold what that method stores exactly


@dataclass
class Run:
    """One training run."""

    source: str
    targets: list
    rank: int = 4
    alpha: float = 8.0
    rslora: bool = False
    samples: int = 36
    batch_size: int = 8
    steps: int = 20
    loss: str = "cross-entropy"
    optimizer: str = "adamw"
    lr: float = 1e-2
    weight_decay: float = 0.01
    momentum: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    clip_norm: float | None = None
    seed: int | None = None  # of the data and the initial adapter


INT4_BLOCK = 16
HEADS = ("head", "classifier")  # stay int8


def text_inputs(samples, g):
    return models.tokens(samples, 12, 200, g)


def make_encoder():
    model = models.encoder(classes=10, hidden=48, d_ff=128, vocab=200)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(p, -0.2, 0.2)
    return model


def causal_inputs(samples, g):
    return models.tokens(samples, 8, 64, g)[:2]


def next_tokens(ids, mask):
    """What follows each token, -100 where nothing does."""
    following = torch.cat([ids[:, 1:], ids[:, :1]], 1)
    counts = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    return torch.where(counts == 1, following, -100)


BATCH, BATCH_SEQ = {0: "batch"}, {0: "batch", 1: "seq"}
SOURCES = {
    "mlp": Source(models.Mlp, ("x",), BATCH, True, 20, lambda n, g: (torch.randn(n, 10, generator=g),), 11),
    "seq_mlp": Source(
        models.SequenceMlp, ("x",), BATCH_SEQ, False, 17, lambda n, g: (torch.randn(n, 6, 12, generator=g),), 0
    ),
    "cnn": Source(models.Cnn, ("x",), BATCH, False, 17, lambda n, g: (torch.randn(n, 6, 96, generator=g),), 7),
    "cnn_bn": Source(
        models.Cnn, ("x",), BATCH, False, 17, lambda n, g: (torch.randn(n, 6, 96, generator=g),), 7, folded=False
    ),
    "small_mobile": Source(
        models.Mobile, ("x",), BATCH, False, 17, lambda n, g: (torch.randn(n, 3, 16, 12, generator=g),), 5
    ),
    "encoder": Source(make_encoder, TOKENS, BATCH_SEQ, False, 17, text_inputs, 10),
    "encoder_dynamo": Source(make_encoder, TOKENS, BATCH_SEQ, True, 21, text_inputs, 10),
    "tiny_llama": Source(models.llama, TOKENS[:2], BATCH_SEQ, False, 17, causal_inputs, 64, next_token=True),
}
SEEDS = {name: 100 + i for i, name in enumerate(sorted(SOURCES))} | {"mlp_int4": 120, "tiny_llama": 106, "small_mobile": 106}
SOURCES["mlp_int4"] = replace(SOURCES["mlp"], int4="hqq")
SOURCES["encoder_int4"] = replace(SOURCES["encoder"], int4="search")
MLP_LINEARS = ["fc1", "fc2", "body.0", "body.2", "head"]
CONVS = ["stem.0", "conv1", "conv2", "skip.0", "conv"]
TEXT = dict(samples=22, batch_size=4)
RUNS = {
    "mlp": Run("mlp", MLP_LINEARS),
    "mlp_sgd": Run("mlp", MLP_LINEARS, optimizer="sgd", momentum=0.9, lr=0.05, weight_decay=1e-3),
    "mlp_rslora": Run("mlp", ["fc2", "head"], rank=9, alpha=6.0, rslora=True, weight_decay=0.1),
    "mlp_cosine_clip": Run("mlp", MLP_LINEARS, lr=2e-2, schedule="cosine", warmup=4, clip_norm=0.2),
    "mlp_linear_rank1": Run("mlp", ["head"], rank=1, alpha=1.0, lr=5e-2, schedule="linear"),
    "seq_mlp_mse": Run("seq_mlp", ["up", "gate", "mix", "down"], loss="mse", samples=20, batch_size=4),
    "cnn": Run("cnn", [*CONVS, "fc", "head"], lr=5e-3),
    "cnn_bn": Run("cnn_bn", [*CONVS, "fc", "head"], samples=8, steps=0),
    "encoder": Run("encoder", ["query", "value"], **TEXT),
    "encoder_all": Run("encoder_dynamo", ["query", "key", "value", "dense", "classifier"], lr=4e-3, **TEXT),
    "tiny_llama": Run("tiny_llama", ["q_proj", "v_proj"], samples=10, batch_size=4),
    "mlp_int4": Run("mlp_int4", MLP_LINEARS),
    "encoder_int4": Run("encoder_int4", ["query", "value", "dense"], lr=4e-3, **TEXT),
    "small_mobile": Run(
        "small_mobile", ["stem.1", "expand.0", "project.0", "head", "classifier"], samples=8, batch_size=3, lr=2e-3,
        seed=510,
    ),
}


def quantize(weight: np.ndarray, keep_sums: bool) -> np.ndarray:
    """The weight [rows, ...] after int8 and back: symmetric, one scale a row, round half to even, all in f32.

    For convolutions, the elements nearest to a tie then go the other way, until the sum of each row is kept."""
    rows = weight.reshape(weight.shape[0], -1)
    scale = np.abs(rows).max(1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    q = np.clip(np.rint(rows / scale), -127, 127).astype(np.int8)
    if keep_sums:
        remainder = rows / scale - q.astype(np.float32)
        for row, lost in zip(q, remainder):
            total = lost.astype(np.float64).sum()
            up = np.sign(total)
            nearest = np.argsort(-up * lost, kind="stable")[: int(np.rint(abs(total)))]
            row[nearest] = np.clip(row[nearest] + up, -127, 127)
    return (q.astype(np.float32) * scale).reshape(weight.shape)


def takes_int4(name: str, m: nn.Module) -> bool:
    """Whether the converter would store the weight of this module as int4."""
    enough = isinstance(m, nn.Linear) and m.weight.numel() >= SMALLEST_QUANTIZED
    return enough and m.in_features % INT4_BLOCK == 0 and name not in HEADS


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def quantize_model(model: nn.Module, int4: bool) -> None:
    """Replaces each Linear, Conv and Embedding weight that the converter would store as int8, or as halves."""
    weights = (nn.Linear, nn.Embedding, *CONVOLUTIONS)
    packed = [(n, m) for n, m in model.named_modules() if isinstance(m, weights) and m.weight.numel() >= SMALLEST_QUANTIZED]
    left = sum({id(m.weight): m.weight.numel() for _, m in packed}.values()) // SPARED
    done = set()  # a head tied to its table is quantized once
    for name, m in sorted(packed, key=lambda one: one[1].weight.numel()):
        if id(m.weight) in done or int4 and takes_int4(name, m):
            continue
        done.add(id(m.weight))
        if isinstance(m, CONVOLUTIONS) and m.weight.numel() <= left:
            left -= m.weight.numel()
            m.weight.data = m.weight.data.half().float()
            continue
        left = 0 if isinstance(m, CONVOLUTIONS) else left
        m.weight.data = torch.from_numpy(quantize(m.weight.detach().numpy(), isinstance(m, CONVOLUTIONS)))


def sixteen_levels(weight: np.ndarray, zero_points: bool) -> np.ndarray:
    """The weight [N, K] with blocks of K rounded to `(q - zero_point) scale`, q in 0..15: each block reaches its extremes."""
    blocks = weight.reshape(-1, INT4_BLOCK)
    if zero_points:
        low, high = np.minimum(blocks.min(1, keepdims=True), 0), np.maximum(blocks.max(1, keepdims=True), 0)
        scale = (high - low) / np.float32(15)
        zero = np.rint(-low / scale)
        q = np.clip(np.rint(blocks / scale) + zero, 0, 15)
        np.put_along_axis(q, blocks.argmin(1)[:, None], 0, 1)
        np.put_along_axis(q, blocks.argmax(1)[:, None], 15, 1)
    else:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
        scale, zero = largest / np.float32(-8), np.float32(8)
        q = np.clip(np.rint(blocks / scale) + zero, 0, 15)
    return ((q - zero).astype(np.float32) * scale).reshape(weight.shape)


@functools.cache
def source_model(name: str) -> nn.Module:
    """The f32 model of a source in eval mode, not folded yet."""
    torch.manual_seed(1234 if name.startswith("encoder") else SEEDS[name])
    model = SOURCES[name].model().eval()
    for path, m in model.named_modules():
        if SOURCES[name].int4 and takes_int4(path, m):
            levels = sixteen_levels(m.weight.detach().numpy(), SOURCES[name].int4 == "hqq")
            m.weight.data = torch.from_numpy(levels)
    return model


def export_source(name: str) -> None:
    """Writes SOURCE/model.onnx."""
    source, model = SOURCES[name], copy.deepcopy(source_model(name))
    if isinstance(model, (models.Cnn, models.Mobile)) and source.folded:
        models.fold_norms(model)
    path = HERE / name / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    traced = source.inputs(3, torch.Generator().manual_seed(1))
    output = "y" if source.classes == 0 else "logits"
    common = dict(input_names=list(source.names), output_names=[output], opset_version=source.opset)
    if source.dynamo:
        axes = {axis: torch.export.Dim(name) for axis, name in source.axes.items()}
        shapes = tuple(axes for _ in source.names)
        torch.onnx.export(
            model, traced, path, dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False, **common
        )
    else:
        axes = {name: source.axes for name in source.names} | {output: {0: "batch"}}
        keep = {} if source.folded else dict(training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
        torch.onnx.export(model, traced, path, dynamo=False, dynamic_axes=axes, **common, **keep)
    drop_stack_traces(path)


def base_model(name: str, base: str) -> tuple:
    """The model that is trained on: folded and, but for f32, quantized. With the factors of what was folded."""
    model, factors = copy.deepcopy(source_model(name)), {}
    if isinstance(model, (models.Cnn, models.Mobile)) and (SOURCES[name].folded or base != "f32"):
        factors = models.fold_norms(model)
    if base != "f32":
        quantize_model(model, base == "int4")
    return model, ({} if SOURCES[name].folded else factors)


def with_adapter(model: nn.Module, run: Run, seed: int, factors: dict) -> peft.PeftModel:
    """The model with the run's initial adapter. Folded factors multiply B's rows, as on import."""
    generator = torch.Generator().manual_seed(seed)
    config = peft.LoraConfig(
        r=run.rank, lora_alpha=run.alpha, use_rslora=run.rslora, target_modules=list(run.targets), lora_dropout=0.0
    )
    model = peft.get_peft_model(model, config).eval()
    for name, p in model.named_parameters():
        if "lora_" in name:
            fan_in = p[0].numel()
            path, matrix = parameter_path(name)
            values = torch.randn(p.shape, generator=generator) * ((1.0 if matrix == "lora_A" else 0.5) / fan_in**0.5)
            if matrix == "lora_B" and path in factors:
                values *= factors[path].view(-1, *[1] * (p.dim() - 1))
            p.data = values.to(p.dtype)
    return model


def parameter_path(name: str) -> tuple:
    """`base_model.model.PATH.lora_A.default.weight` -> (PATH, "lora_A")."""
    path, matrix = name.removeprefix("base_model.model.").removesuffix(".default.weight").rsplit(".", 1)
    return path, matrix


def lora_parameters(model: nn.Module) -> dict:
    """PATH.lora_A / PATH.lora_B -> parameter."""
    return {".".join(parameter_path(n)): p for n, p in model.named_parameters() if p.requires_grad}


def save_adapter(model: peft.PeftModel, folder: Path) -> None:
    """The folder that PEFT writes, in a stable order, without the model card."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def loss_of(run: Run, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over the batch."""
    if run.loss == "mse":
        return nn.functional.mse_loss(output, labels)
    return nn.functional.cross_entropy(output.flatten(0, -2), labels.flatten())


def train(model: nn.Module, run: Run, inputs: tuple, labels: torch.Tensor) -> dict:
    """Trains in place, batches in order, the last one of an epoch short; returns losses, lrs and first gradients."""
    parameters = lora_parameters(model)
    if run.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters.values(), lr=run.lr, weight_decay=run.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            parameters.values(), lr=run.lr, momentum=run.momentum, weight_decay=run.weight_decay
        )
    scheduler = get_scheduler(
        "constant_with_warmup" if run.schedule == "constant" else run.schedule, optimizer, run.warmup, run.steps
    )
    batches_per_epoch = -(-run.samples // run.batch_size)
    record = dict(losses=[], lrs=[])
    for step in range(run.steps):
        start = step % batches_per_epoch * run.batch_size
        rows = slice(start, min(start + run.batch_size, run.samples))
        loss = loss_of(run, model(*(x[rows] for x in inputs)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            record |= {f"grad.{n}": p.grad.detach().numpy().copy() for n, p in parameters.items()}
        if run.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters.values(), run.clip_norm)
        record["losses"].append(loss.item())
        record["lrs"].append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    record |= {f"final.{n}": p.detach().numpy().copy() for n, p in parameters.items()}
    return record


def golden(run: Run, seed: int, base: str, inputs: tuple, labels, dtype=torch.float32, folder=None) -> dict:
    """Everything that one run expects on one base, computed in `dtype`; writes the initial adapter to `folder`."""
    model, factors = base_model(run.source, base)
    model = model.to(dtype)
    cast = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    labels = labels.to(dtype) if labels.is_floating_point() else labels
    with torch.no_grad():
        outputs = dict(base_output=model(*cast).numpy())
    model = with_adapter(model, run, seed, factors)
    if folder:
        save_adapter(model, folder)
    with torch.no_grad():
        outputs["initial_output"] = model(*cast).numpy()
    record = train(model, run, cast, labels)
    with torch.no_grad():
        outputs["final_output"] = model(*cast).numpy()
    return {k: np.asarray(v, np.float32) for k, v in (record | outputs).items()}


def arguments(run: Run) -> list:
    """The run as arguments of `personalize train`, beyond --base, --data, --init-adapter, --user, --store and --log."""
    args = ["--no-shuffle", "--steps", run.steps, "--batch-size", run.batch_size, "--lr", run.lr, "--loss", run.loss]
    args += ["--optimizer", run.optimizer, "--weight-decay", run.weight_decay, "--schedule", run.schedule]
    args += ["--momentum", run.momentum] if run.optimizer == "sgd" else []
    args += ["--warmup", run.warmup] if run.warmup else []
    args += ["--clip-norm", run.clip_norm] if run.clip_norm is not None else []
    return [str(a) for a in args]


def make(name: str, run: Run) -> dict:
    """Writes one run's files; returns its manifest entry."""
    source, folder = SOURCES[run.source], HERE / name
    seed = 500 + list(RUNS).index(name) if run.seed is None else run.seed
    folder.mkdir(exist_ok=True)
    g = torch.Generator().manual_seed(seed)
    inputs = source.inputs(run.samples, g)
    with torch.no_grad():
        output = source_model(run.source)(*inputs)
    if source.next_token:
        labels = next_tokens(*inputs)
    elif source.classes:
        labels = torch.randint(0, source.classes, (run.samples,), generator=g)
    else:
        labels = output + torch.randn(output.shape, generator=g)
    np.savez(folder / "data.npz", **{n: x.numpy() for n, x in zip(source.names, inputs)}, labels=labels.numpy())
    bases = ("int4",) if source.int4 else ("f32", "int8")
    for base in bases:
        adapter = folder / "adapter" if base == bases[0] else None
        expected = golden(run, seed, base, inputs, labels, folder=adapter)
        np.savez(folder / f"{base}.npz", **expected)
        exact = golden(run, seed, base, inputs, labels, dtype=torch.float64)
        if run.steps:
            drift = np.abs(expected["losses"] / exact["losses"] - 1).max()
            print(f"{name:18} {base:5} loss {expected['losses'][0]:.4f} -> {expected['losses'][-1]:.4f}, "
                  f"f32 against f64: {drift:.1e}", flush=True)  # fmt: skip
            assert drift < 2e-5, "too sensitive to rounding to be a golden run"
    paths = sorted({k.removeprefix("final.").rsplit(".", 1)[0] for k in expected if k.startswith("final.")})
    entry = dict(name=name, source=f"{run.source}/model.onnx", data=f"{name}/data.npz", adapter=f"{name}/adapter")
    entry |= dict(expected={b: f"{name}/{b}.npz" for b in bases}, output="logits" if source.classes else "y")
    if source.int4:
        entry |= dict(export=["--int4-block", str(INT4_BLOCK), "--int4-method", source.int4])
        if source.classes:
            # The converter would spare the values of attention: every linear but the head is int4 here.
            entry["export"] += ["--quant-rule", "*.value=int4"]
    entry |= {k: v for k, v in vars(run).items() if k not in ("source", "seed")} | dict(paths=paths, arguments=arguments(run))
    return entry


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = sys.argv[1:] or list(RUNS)
    for source in sorted({RUNS[n].source for n in names}):
        export_source(source)
    entries = [make(n, RUNS[n]) for n in names]
    if not sys.argv[1:]:
        versions = dict(torch=torch.__version__.split("+")[0], peft=peft.__version__)
        (HERE / "manifest.json").write_text(json.dumps(dict(made_with=versions, runs=entries), indent=1) + "\n")


if __name__ == "__main__":
    main()
