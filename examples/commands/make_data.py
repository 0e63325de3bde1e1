#!/usr/bin/env python3
"""Writes the commands: tokens of home-assistant-intents and of three people's own phrases, and the classifier of the base.

    tests/setup-minilm.sh
    pip download --no-deps home-assistant-intents==2026.10.27 && unzip -d FOLDER home_assistant_intents-*.whl
    pip install torch==2.15.0 onnx==1.23.2 onnxruntime==1.32.0 tokenizers
    python make_data.py FOLDER

The base is MiniLM-L6 with a linear classifier, trained on sentences of other templates than those of the test.
"""

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from tokenizers import Tokenizer

HERE = Path(__file__).parent
MINILM = HERE.parent.parent / "target/minilm"
TOKENS, SEED = 16, 0
# Sentences an intent: for the base, for everybody's calibration (of those of the base), for the standard test.
BASE, ANCHORS, TEST = 28, 2, 4
REHEARSE, HELD_BACK, PERSONAL_TEST, STANDARD_TEST = range(4)
EVERYBODY = -1
# What goes into slots for which the package has no words.
SLOTS = {
    "area": ["kitchen", "living room", "bedroom", "garage", "hallway", "office", "bathroom", "basement"],
    "name": ["desk lamp", "ceiling fan", "front door", "blinds", "heater", "coffee machine", "speaker", "robot"],
    "floor": ["first floor", "upstairs", "ground floor"],
    "message": ["dinner is ready", "i am home", "time for bed"],
    "shopping_list_item": ["milk", "eggs", "bread", "apples"],
    "todo_list_item": ["call mom", "pay rent", "water plants"],
    "search_query": ["jazz", "abba", "the beatles"],
    "timer_name": ["pizza", "tea", "laundry"],
}


class Templates:
    """Sentences of templates such as `[please] (turn|switch) on <the> {name}`."""

    def __init__(self, intents, rng):
        self.intents, self.rng = intents, rng

    def sentence(self, template):
        text, end = self.sequence(template, 0)
        assert end == len(template), template
        return re.sub(r"\s+", " ", text).strip()

    def sequence(self, text, at):
        """Alternatives up to a closing bracket or the end: one of them, and where it ends."""
        choices, now = [], ""
        while at < len(text) and text[at] not in ")]":
            mark = text[at]
            if mark in "([":
                inner, at = self.sequence(text, at + 1)
                now += inner if mark == "(" or self.rng.random() < 0.5 else ""
                at += 1
            elif mark in "<{":
                end = text.index(">" if mark == "<" else "}", at)
                name = text[at + 1 : end]
                now += self.sentence(self.intents["expansion_rules"][name]) if mark == "<" else self.slot(name)
                at = end + 1
            elif mark == "|":
                choices.append(now)
                now, at = "", at + 1
            else:
                now += " " if mark == ";" else mark
                at += 1
        return self.rng.choice(choices + [now]), at

    def slot(self, name):
        name = name.split(":")[0]
        known = self.intents["lists"].get(name, {})
        if name in SLOTS:
            return self.rng.choice(SLOTS[name])
        if "values" in known:
            value = self.rng.choice(known["values"])
            return self.sentence(value["in"] if isinstance(value, dict) else value)
        if "range" in known:
            return str(self.rng.randint(int(known["range"]["from"]), int(known["range"]["to"])))
        return "something"


def standard(folder):
    """{intent: (sentences for the base, sentences of other templates for the test)}."""
    intents = json.loads((folder / "home_assistant_intents/data/en.json").read_text())
    rng = random.Random(SEED)
    templates, found = Templates(intents, rng), {}
    for intent, entry in sorted(intents["intents"].items()):
        sources = [sentence for block in entry["data"] for sentence in block["sentences"]]
        rng.shuffle(sources)
        sentences = [sorted({templates.sentence(source) for _ in range(12)} - {""}) for source in sources]
        cut = max(1, len(sources) // 5) if len(sources) > 1 else 0
        test, base = sum(sentences[:cut], []), sum(sentences[cut:], [])
        if not test:
            base, test = base[::2], base[1::2]
        rng.shuffle(base)
        rng.shuffle(test)
        found[intent] = (base[:BASE], test[:TEST])
    return found


def tokens(sentences):
    """Arrays by the names of the model's inputs."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(sentences)
    ids, mask = ([getattr(e, field) for e in encoded] for field in ("ids", "attention_mask"))
    ids, mask = np.array(ids, np.int64), np.array(mask, np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def embeddings(inputs):
    """The mean over unmasked tokens, as the base computes it."""
    session = onnxruntime.InferenceSession(MINILM / "encoder.onnx")
    (hidden,) = session.run(None, inputs)
    mask = inputs["attention_mask"][:, :, None]
    return torch.tensor((hidden * mask).sum(1) / mask.sum(1), dtype=torch.float32)


def train(x, y, classes):
    torch.manual_seed(SEED)
    head = torch.nn.Linear(x.shape[1], classes)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=1e-2)
    for _ in range(60):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(head(x[batch]), y[batch]).backward()
            optimizer.step()
    return head


def main(folder):
    torch.set_num_threads(1)
    sentences, people = standard(folder), json.loads((HERE / "phrases.json").read_text())
    label = {intent: at for at, intent in enumerate(sentences)}
    seen = [(text, label[intent]) for intent, (base, _) in sentences.items() for text in base]
    x, y = embeddings(tokens([text for text, _ in seen])), torch.tensor([label for _, label in seen])
    head = train(x, y, len(label))

    rows = []
    for intent, (base, test) in sentences.items():
        rows += [(text, label[intent], EVERYBODY, REHEARSE) for text in base[:ANCHORS]]
        rows += [(text, label[intent], EVERYBODY, STANDARD_TEST) for text in test]
    for who, phrases in enumerate(people):
        for intent, texts in phrases.items():
            splits = (REHEARSE, HELD_BACK, PERSONAL_TEST, PERSONAL_TEST)
            rows += [(text, label[intent], who, split) for text, split in zip(texts, splits)]
    texts, labels, person, split = zip(*rows)
    inputs = tokens(list(texts))
    labels, person, split = (np.array(column, np.int8) for column in (labels, person, split))
    with torch.no_grad():
        right = (head(embeddings(inputs)).argmax(1).numpy() == labels)
    for name, rows in (("standard", split == STANDARD_TEST), ("personal", split == PERSONAL_TEST)):
        print(f"{name}: {100 * right[rows].mean():.1f} % of {rows.sum()}")

    model = onnx.load(MINILM / "classifier.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in ("classifier.weight", "classifier.bias"):
            value = getattr(head, tensor.name.split(".")[1]).detach().numpy()
            assert list(tensor.dims) == list(value.shape), f"{tensor.name}: {len(label)} intents do not fit {tensor.dims}"
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, HERE / "commands.onnx")
    narrow = {name: array.astype(np.int16) for name, array in inputs.items()}
    np.savez_compressed(HERE / "people.npz", **narrow, labels=labels, person=person, split=split)
    (HERE / "folds.json").write_text(
        json.dumps([{"model": "../../target/minilm/commands.onnx", "people": list(range(len(people)))}], indent=2) + "\n"
    )
    (HERE / "intents.json").write_text(json.dumps(list(label), indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
