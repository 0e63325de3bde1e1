"""Writes SmolLM2-135M as an exporter writes it, a text to measure perplexity on, and one to calibrate with.

    python make_smollm2.py GGUF TEXT CALIBRATION_TEXT OUT

  OUT/model.onnx   f32, operator set 17, input_ids and attention_mask [batch, seq] -> logits [batch, seq, vocab]
  OUT/text.npz     input_ids, attention_mask, labels (the next token, -100 after the last) of ROWS pieces of TEXT
  OUT/calibration.npz  input_ids, attention_mask of ROWS pieces spread over CALIBRATION_TEXT, for --calibrate
  OUT/about.json   what PyTorch says: the mean loss over the labels, and the logits of the last token of the first row
Needs torch, transformers, gguf, onnx, numpy.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

ROWS, TOKENS = 16, 128


class Decoder(LlamaForCausalLM):
    """Without a cache."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def tokens(tokenizer, text: Path) -> torch.Tensor:
    """The text's tokens."""
    return tokenizer(text.read_text(encoding="utf-8", errors="replace"), return_tensors="pt").input_ids[0]


def calibration(tokenizer, text: Path, out: Path) -> None:
    """Pieces from all parts of the text."""
    ids = tokens(tokenizer, text).numpy()
    ids = np.stack([ids[at : at + TOKENS] for at in np.linspace(0, len(ids) - TOKENS, ROWS, dtype=int)])
    np.savez(out / "calibration.npz", input_ids=ids, attention_mask=np.ones_like(ids))


def main() -> None:
    gguf, text, calibration_text, out = (Path(argument) for argument in sys.argv[1:])
    warnings.simplefilter("ignore")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    calibration(tokenizer, calibration_text, out)
    model = Decoder.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="sdpa")
    model.eval()

    ids = tokens(tokenizer, text)
    ids = ids[: ROWS * TOKENS].reshape(ROWS, TOKENS)
    labels = torch.cat([ids[:, 1:], torch.full((ROWS, 1), -100)], 1)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        logits = torch.cat([model(i[None], m[None]) for i, m in zip(ids, mask)])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    about = dict(loss=loss.item(), perplexity=loss.exp().item(), last_logits=logits[0, -1, :32].tolist())
    (out / "about.json").write_text(json.dumps(about) + "\n")
    np.savez(out / "text.npz", input_ids=ids.numpy(), attention_mask=mask.numpy(), labels=labels.numpy())
    print(f"PyTorch: loss {loss:.4f}, perplexity {loss.exp():.3f}", flush=True)

    names, axes = ["input_ids", "attention_mask"], {0: "batch", 1: "seq"}
    dynamic = {name: axes for name in [*names, "logits"]}
    common = dict(input_names=names, output_names=["logits"], opset_version=17, dynamic_axes=dynamic)
    torch.onnx.export(model, (ids[:2, :9], mask[:2, :9]), out / "model.onnx", dynamo=False, **common)


if __name__ == "__main__":
    main()
