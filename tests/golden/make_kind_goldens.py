"""Writes `kinds/*.npz`: what PyTorch computes when only biases, norm gains, whole weights or a new head are trained.

    python make_kind_goldens.py [NAME ...]

Runs share the sources (`SOURCE/model.onnx`) and the data (`RUN/data.npz`) of `make_goldens.py`; its docstring says how the
models are made. Each `kinds/NAME.npz` holds, for the f32 base, or the int4 one where the source is made for it:
  losses [steps]                    the mean loss of each step's batch, batches in order
  grad.PARAMETER                    gradients of the first step
  delta.PARAMETER                   the trained parameter less what it was before
  initial_output, final_output      over the whole of the data
Optimizer: AdamW without weight decay, so that training a difference is training the parameter. A head takes the place of the
model's classifier and starts at zero.
"""

import sys

import numpy as np
import torch
from torch import nn

from make_goldens import HERE, base_model

STEPS = 20


def biases(name: str) -> bool:
    """All but those of keys: softmax does not see them, and AdamW would train their rounding errors."""
    return name.endswith("bias") and not name.endswith("key.bias")


def gains(name: str) -> bool:
    return name.lower().endswith("norm.weight")


RUNS = {
    # name: source and data, batch size, lr, parameters
    "bias_encoder": ("encoder", 4, 1e-2, biases),
    "bias_cnn": ("cnn", 8, 1e-2, biases),
    "norm_encoder": ("encoder", 4, 2e-2, gains),
    "norm_llama": ("tiny_llama", 4, 2e-2, gains),
    "bias_norm_encoder": ("encoder", 4, 1e-2, lambda name: biases(name) or gains(name)),
    "dense_encoder": ("encoder", 4, 1e-3, lambda name: name.endswith(("1.attention.self.query.weight", "classifier.weight"))),
    "bias_norm_int4": ("encoder_int4", 4, 1e-2, lambda name: biases(name) or gains(name)),
    "dense_int4": ("encoder_int4", 4, 1e-3, lambda name: name.endswith(("1.attention.self.query.weight", "0.attention.output.dense.weight"))),
    "head_int4": ("encoder_int4", 4, 1e-2, lambda name: name.startswith("classifier.")),
    "dense_cnn": ("cnn", 8, 1e-3, lambda name: name in ("block1.conv1.weight", "fc.weight")),
}


def make(name: str) -> None:
    source, batch_size, lr, chosen = RUNS[name]
    model, _ = base_model(source, "int4" if source.endswith("int4") else "f32")
    if name.startswith("head_"):
        for parameter in model.classifier.parameters():
            nn.init.zeros_(parameter)
    arrays = np.load(HERE / source / "data.npz")
    labels = torch.from_numpy(arrays["labels"])
    inputs = tuple(torch.from_numpy(arrays[k]) for k in arrays.files if k != "labels")
    parameters = {}
    for n, p in model.named_parameters():
        p.requires_grad = chosen(n)
        if p.requires_grad:
            parameters[n] = p
    before = {n: p.detach().clone() for n, p in parameters.items()}
    with torch.no_grad():
        record = dict(initial_output=model(*inputs).numpy())
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0.0)
    losses, per_epoch = [], -(-len(labels) // batch_size)
    for step in range(STEPS):
        rows = slice(step % per_epoch * batch_size, min((step % per_epoch + 1) * batch_size, len(labels)))
        output = model(*(x[rows] for x in inputs))
        loss = nn.functional.cross_entropy(output.flatten(0, -2), labels[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            record |= {f"grad.{n}": p.grad.numpy().copy() for n, p in parameters.items() if p.grad is not None}
        losses.append(loss.item())
        optimizer.step()
    with torch.no_grad():
        record["final_output"] = model(*inputs).numpy()
    record["losses"] = np.array(losses)
    record |= {f"delta.{n}": (p.detach() - before[n]).numpy() for n, p in parameters.items() if f"grad.{n}" in record}
    folder = HERE / "kinds"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **{k: np.asarray(v, np.float32) for k, v in record.items()})
    print(f"{name:20} {len(parameters)} parameters, loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or RUNS:
        make(name)
