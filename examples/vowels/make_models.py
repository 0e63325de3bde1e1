#!/usr/bin/env python3
"""Trains the float models of the vowels: five, each of which never saw three of the fifteen speakers.

    examples/vowels/setup.sh
    pip install torch==2.15.0 onnx==1.23.2
    python make_models.py
"""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "target/vowels/vowel.dat"
SEED = 0


class Vowels(nn.Module):
    """Ten reflection coefficients [B, 10] -> logits [B, 11]."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.fc1, self.fc2, self.fc3 = nn.Linear(10, 64), nn.Linear(64, 64), nn.Linear(64, 11)

    def forward(self, x):
        x = (x - self.mean) / self.std
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def train(x, y):
    torch.manual_seed(SEED)
    mean, std = x.mean(0), x.std(0)
    net = Vowels(mean, std)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=2e-2)
    for _ in range(60):
        for batch in torch.randperm(len(x)).split(64):
            noisy = x[batch] + 0.15 * std * torch.randn(len(batch), 10)
            optimizer.zero_grad()
            F.cross_entropy(net(noisy), y[batch]).backward()
            optimizer.step()
    return net.eval()


def main():
    torch.set_num_threads(1)
    table = np.loadtxt(DATA, delimiter=",")
    speaker, x, y = table[:, 1].astype(int), torch.tensor(table[:, 3:13], dtype=torch.float32), torch.tensor(table[:, 13]).long()
    folds = []
    for fold, held_out in enumerate(np.array_split(np.random.default_rng(SEED).permutation(15), 5)):
        seen = torch.tensor(~np.isin(speaker, held_out))
        net = train(x[seen], y[seen])
        name = f"fold{fold}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net,
                torch.zeros(1, 10),
                HERE / name,
                input_names=["x"],
                output_names=["logits"],
                dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
        with torch.no_grad():
            right = net(x[~seen]).argmax(1) == y[~seen]
        print(f"{name}: speakers {sorted(map(int, held_out))}, {100 * right.float().mean():.1f} % on them")
        folds.append({"model": name, "people": sorted(map(int, held_out))})
    (HERE / "folds.json").write_text(json.dumps(folds, indent=2) + "\n")


if __name__ == "__main__":
    main()
