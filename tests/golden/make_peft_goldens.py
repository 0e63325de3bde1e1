"""Writes adapters as PEFT saves them, and what PyTorch + PEFT compute with them; checks folders of ours in PEFT.

    python make_peft_goldens.py                    writes peft/ beside this script
    python make_peft_goldens.py check CONVERTER    imports and exports each folder with that binary, loads the result
                                                   with PEFT, and compares outputs (1e-5 of the largest)

The check takes what the other scripts here wrote with PEFT too: LoRA of convolutions, with a BatchNormalization folded by the
converter and without, LoRA of a Llama, and (IA)3.

The models are those of the run `encoder` and of the fixture `gpt2_dyn18`. For each case, in peft/NAME/:
  adapter/        as PEFT saves it
  expected.npz    output: of the model with the adapter, over the inputs of the model's own file
`lookup` is trained too: losses [steps], grad.PARAMETER of the first step and final.PARAMETER, in PEFT's shapes, by AdamW
without weight decay at 1e-2, batches of 4 in order.

Needs torch, transformers, peft, numpy, safetensors.
"""

import copy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import make_goldens
import models
import numpy as np
import peft
import torch
from make_goldens import HERE, save_adapter
from torch import nn

FIXTURES = HERE.parent / "fixtures"
LAYER = "bert.encoder.layer"
CASES = {  # model, settings, the converter's options
    "lookup": ("encoder", dict(r=3, lora_alpha=6, target_modules=["word_embeddings", "query"]), "*word_embeddings,*query"),
    "patterns": (
        "encoder",
        dict(
            r=3,
            lora_alpha=4,
            use_rslora=True,
            target_modules=["query", "value"],
            rank_pattern={"layer.1.attention.self.query": 2, "value": 5},
            alpha_pattern={r"layer\.[1-9]\.attention\.self\.value": 3.0},
        ),
        "*query,*value",
    ),
    "whole": (
        "encoder",
        dict(r=2, lora_alpha=4, target_modules=["query"], modules_to_save=["classifier", f"{LAYER}.1.output.LayerNorm"]),
        "*query,classifier",
    ),
    "fan_in_fan_out": ("gpt2", dict(r=3, lora_alpha=5, fan_in_fan_out=True, target_modules=["c_attn", "wte"]), "*c_attn,*wte"),
}  # fmt: skip
OTHERS = {  # model, the folder with adapter/ and f32.npz, the converter's options
    "cnn": ("cnn", "cnn", []),
    "cnn_bn": ("cnn_bn", "cnn_bn", []),
    "tiny_llama": ("tiny_llama", "tiny_llama", ["--targets", "*q_proj,*v_proj"]),
    "ia3": (
        "encoder",
        "infile/ia3",
        ["--kinds", "ia3", "--ia3-targets", "*.key,*.value", "--ia3-feedforward", "*output.dense"],
    ),
}
SOURCES = {"encoder": HERE / "encoder/model.onnx", "gpt2": FIXTURES / "gpt2_dyn18.onnx"}


def model_of(source: str) -> tuple:
    """The model, its inputs and its labels."""
    if source == "encoder":
        data = dict(np.load(HERE / "encoder/data.npz"))
        names = make_goldens.TOKENS
        model, _ = make_goldens.base_model("encoder", "f32")
        return model.eval(), {n: torch.from_numpy(data[n]) for n in names}, torch.from_numpy(data["labels"])
    import make_fixtures

    torch.manual_seed(20240 + list(make_fixtures.FIXTURES).index("gpt2_dyn18"))
    model = models.gpt2().eval()
    inputs = {n: torch.from_numpy(x) for n, x in np.load(FIXTURES / "gpt2_dyn18.inputs.npz").items()}
    expected = np.load(FIXTURES / "gpt2_dyn18.outputs.npz")["logits"]
    with torch.no_grad():
        assert np.abs(model(**inputs).numpy() - expected).max() < 1e-5, "another model than the fixture's"
    return model, inputs, None


def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Gives every trained parameter a value that has an effect."""
    for name, p in model.named_parameters():
        if p.requires_grad:
            noise = torch.randn(p.shape, generator=generator)
            p.data = p.data + 0.1 * noise if "modules_to_save" in name else noise * (0.4 / p.shape[-1] ** 0.5)


def train(model: nn.Module, inputs: dict, labels: torch.Tensor, steps: int = 10) -> dict:
    """Losses, first gradients, and parameters after the last step."""
    parameters = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.0)
    record, losses = {}, []
    for step in range(steps):
        rows = slice(step % 5 * 4, step % 5 * 4 + 4)
        loss = nn.functional.cross_entropy(model(**{n: x[rows] for n, x in inputs.items()}), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            record |= {f"grad.{n}": p.grad.numpy().copy() for n, p in parameters.items()}
        losses.append(loss.item())
        optimizer.step()
    return record | {f"final.{n}": p.detach().numpy().copy() for n, p in parameters.items()} | {"losses": losses}


def output(model: nn.Module, inputs: dict) -> np.ndarray:
    with torch.no_grad():
        return model(**inputs).numpy()


def make(name: str) -> None:
    source, settings, _ = CASES[name]
    model, inputs, labels = model_of(source)
    plain = output(model, inputs)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(lora_dropout=0.0, **settings)).eval()
    randomize(adapted, torch.Generator().manual_seed(40 + list(CASES).index(name)))
    folder = HERE / "peft" / name
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(adapted, folder / "adapter")
    record = {"output": output(adapted, inputs)}
    assert np.abs(record["output"] - plain).max() > 0.05, "the adapter has no effect"
    if name == "lookup":
        record |= train(adapted, inputs, labels)
    np.savez(folder / "expected.npz", **{k: np.asarray(v, np.float32) for k, v in record.items()})
    print(name, "effect", np.abs(record["output"] - plain).max())


def check(name: str, converter: str) -> None:
    """PEFT's folder through a record and back into PEFT."""
    if name in CASES:
        source, _, targets = CASES[name]
        model, inputs, _ = model_of(source)
        onnx, folder, options = SOURCES[source], HERE / "peft" / name, ["--targets", targets]
        expected = np.load(folder / "expected.npz")["output"]
    else:
        source, place, options = OTHERS[name]
        model, _ = make_goldens.base_model(source, "f32")
        onnx, folder = HERE / source / "model.onnx", HERE / place
        data = np.load(HERE / source / "data.npz")
        inputs = {n: torch.from_numpy(data[n]) for n in make_goldens.SOURCES[source].names}
        expected = np.load(folder / "f32.npz")["initial_output"]
    with tempfile.TemporaryDirectory() as scratch:
        base, record, out = (f"{scratch}/{n}" for n in ("base", "record", "peft"))
        for arguments in (
            ["export", onnx, "--out", base, "--quant", "none", *options],
            ["import-peft", folder / "adapter", "--base", base, "--out", record],
            ["export-peft", record, "--base", base, "--out", out],
        ):
            subprocess.run([converter, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
        loaded = peft.PeftModel.from_pretrained(model.eval(), out).eval()
        found = output(loaded, inputs)
    off = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    print(f"{name}: {off:.1e}")
    assert off <= 1e-5, name


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(FIXTURES))
    if sys.argv[1:2] == ["check"]:
        for name in (*CASES, *OTHERS):
            check(name, sys.argv[2])
    else:
        for name in CASES:
            make(name)


if __name__ == "__main__":
    main()
