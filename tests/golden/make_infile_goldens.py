"""Writes the golden runs of the adapter kinds that live in the exported file beside LoRA: (IA)3, bottlenecks, prompts.

    python make_infile_goldens.py

They train on the model and data of the run `encoder` (see make_goldens.py). For each run, in infile/ beside this script:
  NAME/adapter/            for (IA)3: the initial adapter as PEFT saves it
  NAME/{f32,int8}.npz      what PyTorch (with PEFT for (IA)3 and prompts) computes on that base:
      start.PARAMETER, grad.PARAMETER, final.PARAMETER    named and shaped as the graph inputs of the exported file
      losses [steps]                                      the mean loss of each step's batch
      base_output, initial_output, final_output           over the whole of data.npz

Models are in eval mode without dropout; AdamW without weight decay, lr 1e-2, batches in order.
Needs torch, transformers, peft, onnx, numpy, safetensors.
"""

import logging
import warnings

import make_goldens
import numpy as np
import peft
import torch
from make_goldens import HERE, RUNS, base_model, save_adapter
from models import Classifier
from torch import nn

STEPS, BATCH, LR = 20, 4, 1e-2
LAYER = "bert.encoder.layer."


class Bottleneck(nn.Module):
    """`y = h + f(h down + down_bias) up + up_bias`, h being what `base` computes."""

    def __init__(self, base: nn.Linear, width: int, activation, generator: torch.Generator):
        super().__init__()
        d, noise = base.out_features, lambda *shape: torch.randn(*shape, generator=generator)
        self.base, self.activation = base, activation
        self.down = nn.Parameter(noise(d, width) / d**0.5)
        self.down_bias = nn.Parameter(0.2 * noise(width))
        self.up = nn.Parameter(0.5 * noise(width, d) / width**0.5)
        self.up_bias = nn.Parameter(0.2 * noise(d))

    def forward(self, x):
        h = self.base(x)
        return h + self.activation(h @ self.down + self.down_bias) @ self.up + self.up_bias


class EmbeddedClassifier(Classifier):
    """The classifier, reading word embeddings as PEFT hands them over."""

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None, **unused):
        hidden = self.bert(
            input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.classifier((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9))


def with_ia3(model: nn.Module, generator: torch.Generator) -> tuple:
    """Keys, values and every `output.dense`: PEFT's targets for BERT."""
    config = peft.IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"])
    model = peft.get_peft_model(model, config)
    found = {}
    for name, p in model.named_parameters():
        if "ia3_l" in name:
            p.data = (1 + 0.3 * torch.randn(p.shape, generator=generator)).to(p.dtype)
            found[name.removeprefix("base_model.model.").removesuffix(".default")] = p
    return model, found


def with_bottlenecks(paths: list, width: int, activation):
    def attach(model: nn.Module, generator: torch.Generator) -> tuple:
        found = {}
        for path in paths:
            parent, name = path.rsplit(".", 1)
            module = Bottleneck(model.get_submodule(path), width, activation, generator)
            setattr(model.get_submodule(parent), name, module)
            found |= {f"{path}.bottleneck_{n}": p for n, p in module.named_parameters() if not n.startswith("base.")}
        return model, found

    return attach


def with_prompt(model: nn.Module, generator: torch.Generator) -> tuple:
    """Five virtual tokens. PEFT's own head and embeddings stay frozen."""
    model.__class__, model.config, model.device = EmbeddedClassifier, model.bert.config, model.bert.device
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5, prompt_tuning_init="RANDOM")
    model = peft.get_peft_model(model, config)
    p = model.prompt_encoder["default"].embedding.weight
    p.data = (0.5 * torch.randn(p.shape, generator=generator)).to(p.dtype)
    return model, {"bert.embeddings.word_embeddings.prompt_embeddings": p}


FEED_FORWARD = [f"{LAYER}{i}.output.dense" for i in range(2)]
ATTENTION = [f"{LAYER}{i}.attention.output.dense" for i in range(2)]
KINDS = {
    "ia3": with_ia3,
    "bottleneck": with_bottlenecks(FEED_FORWARD, 3, torch.relu),
    "bottleneck_houlsby": with_bottlenecks(sorted(ATTENTION + FEED_FORWARD), 2, nn.functional.gelu),
    "prompt": with_prompt,
}


def run(name: str, int8: bool, data: dict, dtype: torch.dtype) -> dict:
    """Everything that one run expects on one base."""
    inputs = [torch.from_numpy(data[n]) for n in make_goldens.TOKENS]
    labels = torch.from_numpy(data["labels"])
    model, _ = base_model("encoder", "int8" if int8 else "f32")
    model = model.to(dtype)
    compute = lambda: dict(zip(make_goldens.TOKENS, inputs))  # noqa: E731
    with torch.no_grad():
        record = dict(base_output=model(**compute()).numpy())
    generator = torch.Generator().manual_seed(900 + list(KINDS).index(name))
    model, parameters = KINDS[name](model, generator)
    model = model.eval().to(dtype)
    # PEFT keeps factors as columns or rows.
    flat = lambda n, x: x.detach().numpy().reshape(-1) if n.endswith("ia3_l") else x.detach().numpy()  # noqa: E731
    if name == "ia3" and dtype == torch.float32 and not int8:
        save_adapter(model, HERE / "infile" / name / "adapter")
    with torch.no_grad():
        record["initial_output"] = model(**compute()).numpy()
    record |= {f"start.{n}": flat(n, p).copy() for n, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=LR, weight_decay=0.0)
    record["losses"] = []
    batches = -(-len(labels) // BATCH)
    for step in range(STEPS):
        rows = slice(step % batches * BATCH, (step % batches + 1) * BATCH)
        loss = nn.functional.cross_entropy(model(**{n: x[rows] for n, x in compute().items()}), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            record |= {f"grad.{n}": flat(n, p.grad).copy() for n, p in parameters.items()}
        record["losses"].append(loss.item())
        optimizer.step()
    record |= {f"final.{n}": flat(n, p).copy() for n, p in parameters.items()}
    with torch.no_grad():
        record["final_output"] = model(**compute()).numpy()
    return {k: np.asarray(v, np.float32) for k, v in record.items()}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    data = dict(np.load(HERE / "encoder" / "data.npz"))
    assert RUNS["encoder"].samples == len(data["labels"])
    for name in KINDS:
        (HERE / "infile" / name).mkdir(parents=True, exist_ok=True)
        for base in ("f32", "int8"):
            expected = run(name, base == "int8", data, torch.float32)
            np.savez(HERE / "infile" / name / f"{base}.npz", **expected)
            exact = run(name, base == "int8", data, torch.float64)
            drift = np.abs(expected["losses"] / exact["losses"] - 1).max()
            print(f"{name:18} {base:5} loss {expected['losses'][0]:.4f} -> {expected['losses'][-1]:.4f}, "
                  f"f32 against f64: {drift:.1e}", flush=True)  # fmt: skip
            assert drift < 2e-5, "too sensitive to rounding to be a golden run"


if __name__ == "__main__":
    main()
