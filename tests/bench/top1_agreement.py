"""How often an image classifier's int8 base and its float source name the same class first.

    python top1_agreement.py SOURCE.onnx BASE FOLDER_OF_IMAGES

Images: 8 seeded crops of every picture in the folder, and 100 generated ones (sums of smooth waves and of noise), as the
model of `efficientnet-lite-pytorch` takes them: 224 x 224, normalized with ImageNet's mean and deviation. Both files run in
onnxruntime with basic optimization, which agrees with the runtime (tests/onnxruntime/compare.py). Needs numpy, onnxruntime,
pillow. Exit code 1 below 97 %.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

SIZE, CROPS, GENERATED, WANTED = 224, 8, 100, 0.97
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def crops(folder: Path, random: np.random.Generator):
    """Square crops of at least half the shorter side."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".jpeg", ".png")):
        picture = Image.open(path).convert("RGB")
        for _ in range(CROPS):
            side = int(min(picture.size) * random.uniform(0.5, 1.0))
            left, top = (int(random.integers(0, length - side + 1)) for length in picture.size)
            crop = picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.BICUBIC)
            yield np.asarray(crop, np.float32) / 255


def generated(random: np.random.Generator):
    """Waves of a few directions, lengths and colours, with a little noise."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    for _ in range(GENERATED):
        image = np.zeros((SIZE, SIZE, 3))
        for _ in range(6):
            frequency, phase, colour = random.normal(0, 12, 2), random.uniform(0, 6.3), random.normal(0, 1, 3)
            image += np.sin(6.283 * (frequency[0] * x + frequency[1] * y) + phase)[..., None] * colour
        image += random.normal(0, 0.3, image.shape)
        yield (1 / (1 + np.exp(-image))).astype(np.float32)


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    source, base, folder = (Path(p) for p in sys.argv[1:4])
    sessions = [session(source), session(base / "model.onnx")]
    name = sessions[0].get_inputs()[0].name
    every = []
    for label, images in (("packaged", crops(folder, np.random.default_rng(1))), ("generated", generated(np.random.default_rng(2)))):
        firsts = []
        for image in images:
            x = ((image - MEAN) / DEVIATION).transpose(2, 0, 1)[None].astype(np.float32)
            firsts.append([int(s.run(None, {name: x})[0].argmax()) for s in sessions])
        every += firsts
        same = np.mean([a == b for a, b in firsts])
        print(f"{label}: {len(firsts)} images, {len({a for a, _ in firsts})} classes named, same class first {same:.1%}")
    same = np.mean([a == b for a, b in every])
    print(f"all: {len(every)} images, same class first {same:.1%}")
    sys.exit(int(same < WANTED))


if __name__ == "__main__":
    main()
