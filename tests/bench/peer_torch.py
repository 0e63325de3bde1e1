"""One training step of MiniLM with LoRA in PyTorch + PEFT, f32: median milliseconds as JSON.

    python peer_torch.py --minilm DIR --batch-size N --seq N --threads N [--steps N]

The model is that of tests/fixtures/minilm/classifier.onnx (mean pooling, 42 classes) in eval mode with rank-4 LoRA on
query and value of every layer; only those are trained, by AdamW on the cross-entropy. Needs torch, transformers, peft.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path

import peft
import torch
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixtures"))
import models  # noqa: E402

RANK, ALPHA, CLASSES = 4, 8.0, 42


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()

    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    torch.manual_seed(42)
    config = BertConfig.from_pretrained(args.minilm)  # attention as PyTorch chooses, the fastest it has
    model = models.Classifier(config, CLASSES)
    model.bert = BertModel.from_pretrained(args.minilm, config=config, add_pooling_layer=False)
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["query", "value"], lora_dropout=0.0)
    model = peft.get_peft_model(model, lora).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    shape = (args.batch_size, args.seq)
    batch = torch.randint(0, config.vocab_size, shape), torch.ones(shape).long(), torch.zeros(shape).long()
    labels = torch.randint(0, CLASSES, (args.batch_size,))
    times, losses = [], []
    for _ in range(args.steps + 5):
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(*batch), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        times.append(1e3 * (time.perf_counter() - start))
    times = times[5:]
    assert losses[-1] < losses[0], losses
    version = f"PyTorch {torch.__version__.split('+')[0]} + PEFT {peft.__version__} f32"
    result = dict(peer=version, batch_size=args.batch_size, seq=args.seq, threads=args.threads, steps=args.steps)
    result |= dict(ms_per_step=statistics.median(times), min_ms=min(times))
    print(json.dumps(result | dict(first_loss=losses[0], last_loss=losses[-1])))


if __name__ == "__main__":
    main()
