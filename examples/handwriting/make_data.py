#!/usr/bin/env python3
"""Renders sixteen handwriting fonts as sixteen writers, and trains four float models, each of which never saw four of them.

    pip install torch==2.15.0 onnx==1.23.2 pillow
    for font in ...; do npm pack @fontsource/$font@5.3.0; done      # FONTS below, in one folder
    python make_data.py FOLDER

A writer has one form a character; size, slant, stroke, place and an elastic jitter vary. Pixels have 16 grey levels.
"""

import json
import io
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).parent
# The 47 classes of EMNIST Balanced: letters whose two cases look alike are one class.
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
FONTS = (
    "caveat patrick-hand indie-flower shadows-into-light kalam gloria-hallelujah architects-daughter handlee "
    "gochi-hand coming-soon reenie-beanie rock-salt homemade-apple schoolbell neucha short-stack"
).split()
SIZE, LEVELS, SEED = 28, 16, 0
# Samples a character: for the base, for calibration (the last one held back), for the test.
BASE, CALIBRATE, TEST = 30, 3, 5

ys, xs = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
frequency = np.fft.fftfreq(SIZE)
SMOOTH = np.exp(-2 * np.pi**2 * 4.0**2 * (frequency[:, None] ** 2 + frequency[None] ** 2))


def glyph(font, character):
    """The character's ink, cut to its bounds, or nothing."""
    image = Image.new("L", (200, 200), 0)
    box = ImageDraw.Draw(image).textbbox((0, 0), character, font=font)
    ImageDraw.Draw(image).text((100 - (box[0] + box[2]) / 2, 100 - (box[1] + box[3]) / 2), character, fill=255, font=font)
    return image.crop(image.getbbox())


def sample(ink, rng):
    """One way to write it: [28, 28] of 0 to 15."""
    width, height = ink.size
    scale = 20 / max(width, height) * rng.uniform(0.85, 1.12)
    if rng.random() < 0.4:
        ink = ink.filter(ImageFilter.MaxFilter(3))
    angle, shear, aspect = rng.uniform(-0.16, 0.16), rng.uniform(-0.2, 0.2), rng.uniform(0.88, 1.14)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = np.linalg.inv(turn @ np.array([[1, shear], [0, 1]]) @ np.diag([aspect * scale, scale / aspect]))
    x, y = SIZE / 2 + rng.uniform(-1, 1), SIZE / 2 + rng.uniform(-1, 1)
    place = (*back[0], width / 2 - back[0] @ (x, y), *back[1], height / 2 - back[1] @ (x, y))
    soft = ink.filter(ImageFilter.GaussianBlur(max(0.1, 0.45 / scale)))
    drawn = np.asarray(soft.transform((SIZE, SIZE), Image.AFFINE, place, Image.BILINEAR), np.float32)
    shift = [np.real(np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIZE, SIZE))) * SMOOTH)) for _ in range(2)]
    x, y = (np.clip(at + 0.7 * by / (by.std() + 1e-6), 0, SIZE - 1.001) for at, by in zip((xs, ys), shift))
    left, top = x.astype(int), y.astype(int)
    right, down = x - left, y - top
    drawn = (
        drawn[top, left] * (1 - right) * (1 - down)
        + drawn[top, left + 1] * right * (1 - down)
        + drawn[top + 1, left] * (1 - right) * down
        + drawn[top + 1, left + 1] * right * down
    )
    return np.clip(np.round(drawn / (drawn.max() + 1e-6) * (LEVELS - 1)), 0, LEVELS - 1).astype(np.uint8)


def render(folder):
    """[writer, character, sample, 28, 28]."""
    rng = np.random.default_rng(SEED)
    writers = []
    for name in FONTS:
        with tarfile.open(folder / f"fontsource-{name}-5.3.0.tgz") as package:
            woff = package.extractfile(f"package/files/{name}-latin-400-normal.woff").read()
        font = ImageFont.truetype(io.BytesIO(woff), 72)
        inks = [glyph(font, character) for character in CHARACTERS]
        writers.append([[sample(ink, rng) for _ in range(BASE + CALIBRATE + TEST)] for ink in inks])
    return np.array(writers)


class Handwriting(nn.Module):
    """A small CNN: x [B, 1, 28, 28] of 0 to 15 -> logits [B, 47]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 1, 1)
        self.fc1, self.fc2 = nn.Linear(288, 96), nn.Linear(96, len(CHARACTERS))

    def forward(self, x):
        x = x / (LEVELS - 1)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.fc2(F.relu(self.fc1(F.dropout(x.flatten(1), 0.2, self.training))))


def images(pixels):
    return torch.tensor(pixels.reshape(-1, 1, SIZE, SIZE), dtype=torch.float32)


def train(pixels):
    torch.manual_seed(SEED)
    net, epochs = Handwriting(), 8
    x, y = images(pixels), torch.arange(len(CHARACTERS)).repeat_interleave(pixels.shape[2]).repeat(len(pixels))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(x.split(128)))
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main(folder):
    torch.set_num_threads(1)
    pixels = render(folder)
    folds = []
    for fold, held_out in enumerate(np.array_split(np.random.default_rng(SEED).permutation(len(FONTS)), 4)):
        net = train(np.delete(pixels, held_out, 0)[:, :, :BASE])
        name = f"fold{fold}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net,
                torch.zeros(1, 1, SIZE, SIZE),
                HERE / name,
                input_names=["x"],
                output_names=["logits"],
                dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
        with torch.no_grad():
            answers = net(images(pixels[held_out][:, :, BASE:])).argmax(1).view(len(held_out), len(CHARACTERS), -1)
        right = (answers == torch.arange(len(CHARACTERS))[:, None]).float().mean((1, 2))
        print(name, {FONTS[who]: round(100 * float(part), 1) for who, part in zip(held_out, right)}, flush=True)
        folds.append({"model": name, "people": sorted(map(int, held_out))})
    (HERE / "folds.json").write_text(json.dumps(folds, indent=2) + "\n")
    kept = pixels[:, :, BASE:]
    shape = kept.shape[:3]
    split = np.array([0] * (CALIBRATE - 1) + [1] + [2] * TEST, np.uint8)
    np.savez_compressed(
        HERE / "people.npz",
        x=kept.reshape(-1, 1, SIZE, SIZE),
        labels=np.broadcast_to(np.arange(shape[1], dtype=np.uint8)[None, :, None], shape).ravel(),
        person=np.broadcast_to(np.arange(shape[0], dtype=np.int8)[:, None, None], shape).ravel(),
        split=np.broadcast_to(split, shape).ravel(),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
