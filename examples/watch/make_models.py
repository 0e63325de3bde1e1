#!/usr/bin/env python3
"""Makes everything in this folder: the vendored data, five base models, and folds.json.

    pip install torch==2.15.0 onnx onnxscript numpy
    pip download --no-deps seglearn==1.2.5
    python make_models.py seglearn-1.2.5-py3-none-any.whl

One CPU core, about ten minutes. Seeded: a second run on the same machine writes the same bytes.

Ten people took part, in five pairs that exercised side by side. Each fold holds one pair out, so that a base never saw a
person, nor that person's partner in the same session. Every choice (the base's recipe, the hyperparameters) is made on
people of the training set: for each fold, bases that miss one more pair are trained, and that pair plays the new people.
"""

import hashlib
import io
import itertools
import json
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
DATA_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
FOLDS = [(1, 2), (3, 4), (5, 6), (7, 10), (8, 9)]
CLASSES = ["pendulum", "abduction", "forward elevation", "internal rotation", "external rotation", "trapezius extension", "upright row"]
CHANNELS = ["ax", "ay", "az", "wx", "wy", "wz"]
WINDOW, STRIDE = 128, 32  # samples at 50 Hz
SEED = 0

# Recipes of a base, the first of which is the plain one; `rotation` turns the watch on the wrist (radians, standard deviation).
RECIPES = [
    {"rotation": 0.0, "label_smoothing": 0.0, "epochs": 12},
    {"rotation": 0.15, "label_smoothing": 0.05, "epochs": 12},
    {"rotation": 0.25, "label_smoothing": 0.05, "epochs": 16},
]
# Rank 1 is the only one whose record stays under 1,000 bytes; others are measured for the page beside this file.
GRID = [
    {"rank": 1, "lr": lr, "steps": steps, "weight_decay": weight_decay}
    for lr, steps, weight_decay in itertools.product((0.005, 0.01, 0.02), (100, 200), (0.01, 0.1))
]
BATCH = 32
SEEDS = (1, 2, 3)


# ---- data -----------------------------------------------------------------------------------------------------------


def vendor(wheel):
    """Writes watch.npz and the licence; returns the recordings as they will be read: [(person, exercise, samples [n, 6])]."""
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read("seglearn/data/watch_dataset.npy")
        licence = archive.read("seglearn-1.2.5.dist-info/LICENSE")
    assert hashlib.sha256(raw).hexdigest() == DATA_SHA256, "watch_dataset.npy is not that of seglearn 1.2.5"
    (HERE / "LICENSE-seglearn").write_bytes(licence)
    data = np.load(io.BytesIO(raw), allow_pickle=True).item()
    keys = list(zip(data["subject"].astype(int), data["side"].astype(int), data["y"].astype(int)))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    recordings = [data["X"][i].astype(np.float16) for i in order]
    person, side, exercise = (np.array([keys[i][column] for i in order], np.uint8) for column in range(3))
    np.savez_compressed(
        HERE / "watch.npz",
        samples=np.ascontiguousarray(np.concatenate(recordings)).view(np.uint16),
        length=np.array([len(r) for r in recordings], np.int32),
        person=person,
        side=side,
        exercise=exercise,
    )
    return [(int(p), int(e), r.astype(np.float32)) for p, e, r in zip(person, exercise, recordings)]


class Windows:
    """Windows of one group of people: x [B, 6, WINDOW], y [B], and the recording each was cut from."""

    def __init__(self, recordings, keep):
        cut = [
            (recording[start : start + WINDOW].T, exercise, index)
            for index, (person, exercise, recording) in enumerate(recordings)
            for start in range(0, len(recording) - WINDOW + 1, STRIDE)
            if keep(person, start, len(recording))
        ]
        self.x = torch.tensor(np.stack([c[0] for c in cut]))
        self.y = torch.tensor([c[1] for c in cut])
        self.recording = np.array([c[2] for c in cut])

    def held_back(self):
        """Mask of the last quarter of each recording's windows, at least one."""
        mask = np.zeros(len(self.y), bool)
        for recording in np.unique(self.recording):
            at = np.flatnonzero(self.recording == recording)
            mask[at[len(at) - max(1, (len(at) + 2) // 4) :]] = True
        return torch.tensor(mask)


def calibration(recordings, who):
    """Windows that end within the first 25 % of their recording."""
    return Windows(recordings, lambda person, start, n: person == who and 4 * (start + WINDOW) <= n)


def test(recordings, who):
    """Windows that begin after 35 % of their recording."""
    return Windows(recordings, lambda person, start, n: person == who and 20 * start >= 7 * n)


# ---- base -----------------------------------------------------------------------------------------------------------


class Watch(nn.Module):
    """A 1-D CNN over raw sensor units: window [B, 6, WINDOW] -> logits [B, 7]."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.conv1, self.bn1 = nn.Conv1d(6, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(32)
        self.conv2, self.bn2 = nn.Conv1d(32, 64, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(64)
        self.conv3, self.bn3 = nn.Conv1d(64, 64, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(64)
        self.pool = nn.AvgPool1d(4)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, len(CLASSES))

    def features(self, x):
        x = (x - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.pool(x).flatten(1)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(self.features(x))))


def rotated(x, angle):
    """x with its acceleration and its angular velocity turned by one random rotation a window."""
    a = torch.randn(len(x), 3) * angle
    turn = torch.zeros(len(x), 3, 3)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        turn[:, i, j], turn[:, j, i] = -a[:, k], a[:, k]
    turn = torch.matrix_exp(turn)
    return torch.cat([turn @ x[:, :3], turn @ x[:, 3:]], 1)


def train_base(recordings, held_out, recipe):
    """A base trained on everybody but `held_out`."""
    torch.manual_seed(SEED)
    windows = Windows(recordings, lambda person, start, n: person not in held_out)
    mean, std = windows.x.mean((0, 2), keepdim=True), windows.x.std((0, 2), keepdim=True)
    net = Watch(mean, std)
    epochs, size = recipe["epochs"], 128
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(windows.y) // size))
    for _ in range(epochs):
        order = torch.randperm(len(windows.y))
        for batch in order[: len(order) // size * size].split(size):
            x = rotated(windows.x[batch], recipe["rotation"]) if recipe["rotation"] else windows.x[batch]
            x = x + 0.05 * std * torch.randn_like(x)
            x = mean + (x - mean) * (1 + 0.1 * torch.randn(len(batch), 6, 1))
            loss = F.cross_entropy(net(x), windows.y[batch], label_smoothing=recipe["label_smoothing"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy_of(net, windows):
    with torch.no_grad():
        return (net(windows.x).argmax(1) == windows.y).float().mean().item()


# ---- adapters -------------------------------------------------------------------------------------------------------


class Bench:
    """Many (base, person) pairs personalized at once: what lies below the adapters is computed once, the rest is batched.

    N pairs; features are padded to one length, labels with -1.
    """

    def __init__(self, pairs, recordings):
        pad = lambda values, fill: nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)
        nets = [net for net, _ in pairs]
        self.w1, self.b1 = torch.stack([n.fc1.weight.detach().T for n in nets]), torch.stack([n.fc1.bias.detach() for n in nets])
        self.w2, self.b2 = torch.stack([n.fc2.weight.detach().T for n in nets]), torch.stack([n.fc2.bias.detach() for n in nets])
        with torch.no_grad():
            cal = [calibration(recordings, person) for _, person in pairs]
            rest = [test(recordings, person) for _, person in pairs]
            self.cal = pad([n.features(c.x) for n, c in zip(nets, cal)], 0.0)
            self.rest = pad([n.features(t.x) for n, t in zip(nets, rest)], 0.0)
        self.cal_y, self.rest_y = pad([c.y for c in cal], -1), pad([t.y for t in rest], -1)
        self.held = pad([c.held_back() for c in cal], False)
        self.base = self.accuracy(self.rest, self.rest_y)
        self.base_held = self.accuracy(self.cal, self.held_y())

    def held_y(self):
        return torch.where(self.held, self.cal_y, -1)

    def head(self, x, adapter=None):
        a1, b1, a2, b2 = adapter or [None] * 4
        h = torch.baddbmm(self.b1[:, None], x, self.w1)
        h = F.relu(h + x @ a1 @ b1 if adapter else h)
        y = torch.baddbmm(self.b2[:, None], h, self.w2)
        return y + h @ a2 @ b2 if adapter else y

    def accuracy(self, x, y, adapter=None):
        with torch.no_grad():
            right = (self.head(x, adapter).argmax(2) == y) & (y >= 0)
        return (right.sum(1) / (y >= 0).sum(1)).numpy()

    def train(self, use, seed, rank, lr, steps, weight_decay):
        """LoRA on fc1 and fc2 with AdamW, batches of BATCH, shuffled each epoch, the last one short. `use`: mask [N, B]."""
        torch.manual_seed(seed)
        n = len(self.w1)
        init = lambda d_in: ((torch.rand(1, d_in, rank) * 2 - 1) / d_in**0.5).repeat(n, 1, 1)
        adapter = [init(256), torch.zeros(n, rank, 64), init(64), torch.zeros(n, rank, len(CLASSES))]
        optimizer = torch.optim.AdamW([p.requires_grad_() for p in adapter], lr, weight_decay=weight_decay)
        batches = [self.batches(np.flatnonzero(u)) for u in use.numpy()]
        for _ in range(steps):
            at = nn.utils.rnn.pad_sequence([next(b) for b in batches], batch_first=True, padding_value=-1)
            x = self.cal.gather(1, at.clamp(min=0)[:, :, None].expand(-1, -1, 256))
            y = torch.where(at >= 0, self.cal_y.gather(1, at.clamp(min=0)), -1)
            each = F.cross_entropy(self.head(x, adapter).flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none")
            loss = (each.view(y.shape).sum(1) / (y >= 0).sum(1)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.detach().half().float() for p in adapter]

    @staticmethod
    def batches(at):
        while True:
            yield from torch.tensor(at)[torch.randperm(len(at))].split(BATCH)

    def personalize(self, seed, **hyper):
        """A rehearsal without the held-back windows; who gains on those gets an adapter from all windows, the others none.

        Returns the accuracy [N] with the person's adapter (or without, where refused), the verdicts [N] and the adapters.
        """
        rehearsal = self.train((self.cal_y >= 0) & ~self.held, seed, **hyper)
        accepted = self.accuracy(self.cal, self.held_y(), rehearsal) > self.base_held
        adapter = self.train(self.cal_y >= 0, seed, **hyper)
        own = self.accuracy(self.rest, self.rest_y, adapter)
        return np.where(accepted, own, self.base), accepted, adapter


# ---- choices, export, report ----------------------------------------------------------------------------------------


def inner_bases(recordings, recipe):
    """{(f, g): a base that saw neither fold f nor fold g}: the people of g are new to it, and none of f was seen."""
    return {
        (f, g): train_base(recordings, FOLDS[f] + FOLDS[g], recipe) for f, g in itertools.combinations(range(len(FOLDS)), 2)
    }


def inner_pairs(bases):
    """(outer fold, base, person): who stands in for a new person while fold `outer` is never looked at."""
    for (f, g), net in bases.items():
        for outer, inner in ((f, g), (g, f)):
            for person in FOLDS[inner]:
                yield outer, net, person


def choose_recipe(recordings):
    """The recipe with the best mean accuracy on inner people, and its inner bases."""
    scored = []
    for recipe in RECIPES:
        bases = inner_bases(recordings, recipe)
        accuracy = np.mean([accuracy_of(net, test(recordings, person)) for _, net, person in inner_pairs(bases)])
        print(f"base recipe {recipe}: {100 * accuracy:.2f} % on inner people", flush=True)
        scored.append((accuracy, recipe, bases))
    return max(scored, key=lambda s: s[0])[1:]


def choose_hyperparameters(recordings, bases):
    """For each fold, the entry of GRID with the best mean accuracy over its inner people and SEEDS."""
    pairs = list(inner_pairs(bases))
    outer = np.array([o for o, _, _ in pairs])
    bench = Bench([(net, person) for _, net, person in pairs], recordings)
    print(f"inner people: base {100 * bench.base.mean():.2f} %")
    scores = []
    for hyper in GRID + [GRID[-1] | {"rank": 2}, GRID[-1] | {"rank": 4}]:
        own = np.mean([bench.personalize(seed, **hyper)[0] for seed in SEEDS], 0)
        worse = np.mean(own < bench.base - 1e-6)
        print(f"{hyper}: own {100 * own.mean():.2f} %, {100 * worse:.0f} % of pairs worse on average", flush=True)
        scores.append([own[outer == fold].mean() for fold in range(len(FOLDS))])
    scores = np.array(scores[: len(GRID)])
    return [GRID[i] for i in scores.argmax(0)]


def export(net, path):
    """Writes the ONNX file with BatchNormalization in it: folding it away is the converter's work. Returns the op types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            torch.zeros(1, 6, WINDOW),
            path,
            input_names=["window"],
            output_names=["logits"],
            dynamic_axes={"window": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return sorted({node.op_type for node in model.graph.node})


def main(wheel):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recordings = vendor(wheel)
    recipe, bases = choose_recipe(recordings)
    print(f"chosen: {recipe}")
    chosen = choose_hyperparameters(recordings, bases)

    print("person  base   own  other  steps  verdict")
    folds, rows = [], []
    for fold, (held_out, hyper) in enumerate(zip(FOLDS, chosen)):
        net = train_base(recordings, held_out, recipe)
        path = HERE / f"fold{fold}.onnx"
        ops = export(net, path)
        bench = Bench([(net, person) for person in held_out], recordings)
        own, accepted, adapter = bench.personalize(1, **hyper)
        other = bench.accuracy(bench.rest, bench.rest_y, [p.flip(0) for p in adapter])
        folds.append({"model": path.name, "people": list(held_out), "alpha": hyper["rank"], **hyper})
        for i, person in enumerate(held_out):
            rows.append((bench.base[i], own[i], other[i]))
            print(
                f"{person:6} {100 * bench.base[i]:5.1f} {100 * own[i]:5.1f}  {100 * other[i]:5.1f}"
                f"  {hyper['steps']:5}  {'accepted' if accepted[i] else 'refused'}   lr {hyper['lr']} weight decay {hyper['weight_decay']}",
                flush=True,
            )
    print("  mean {:5.1f} {:5.1f}  {:5.1f}".format(*(100 * np.mean(rows, 0))))
    print("ops:", ", ".join(ops))

    (HERE / "folds.json").write_text(
        json.dumps(
            {
                "classes": CLASSES,
                "channels": CHANNELS,
                "sample_rate_hz": 50,
                "window": WINDOW,
                "stride": STRIDE,
                "calibrate_percent": 25,
                "test_from_percent": 35,
                "held_back_percent": 25,
                "batch_size": BATCH,
                "folds": folds,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
