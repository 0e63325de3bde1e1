"""Adapter records of every version, written after docs/adapter-format.md alone.

    pip install blake3 pycryptodome && python runtime/format/tests/golden/make_golden.py

Files of a version are never changed: a reader for them is promised for ever. `record/golden.rs` holds the same
adapters as values. Every value can be held exactly, so nothing depends on how a writer rounds.
"""

import struct
from pathlib import Path

from blake3 import blake3
from Crypto.Cipher import ChaCha20_Poly1305

HERE = Path(__file__).parent
BASE = bytes(range(16))
DTYPES = ["f32", "f16", "int8", "int4"]
# What elements of int4 stand for where the scale is negative, from -8 on.
DENSE = [-127, -92, -71, -56, -43, -31, -20, -10, 0, 12, 23, 36, 50, 67, 88, 127]


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def sealed(body):
    return body + blake3(body).digest()[:16]


def element(i, least, most):
    """Element `i` of a group: the largest comes first, so that a group's scale is certain."""
    largest = most if -least <= most else least
    return largest if i == 0 else i * 5 % (most - least + 1) + least


def values(dtype, scales, length, version):
    """A group for each scale."""
    least, most = (-127, 127) if dtype != "int4" else (-7, 7) if version < 3 else (-8, 7)
    of = lambda element, scale: element * scale if scale > 0 else DENSE[element + 8] * -scale
    return [[of(element(i, least, most), scale) for i in range(length)] for scale in scales]


def payload(dtype, scales, length, version):
    groups = values(dtype, scales, length, version)
    if dtype in ("f32", "f16"):
        return b"".join(struct.pack("<f" if dtype == "f32" else "<e", x) for group in groups for x in group)
    packed = b"".join(struct.pack("<e", scale) for scale in scales)
    of = lambda x, scale: round(x / scale) if scale > 0 else DENSE.index(round(x / -scale)) - 8
    elements = [of(x, scale) for scale, group in zip(scales, groups) for x in group]
    if dtype == "int8":
        return packed + struct.pack(f"<{len(elements)}b", *elements)
    elements.append(0)
    pairs = zip(elements[::2], elements[1::2])
    return packed + bytes((high & 15) << 4 | low & 15 for low, high in pairs)


def header(kind, dtype, rslora, rank, alpha, points, version):
    has_alpha = version < 3 or alpha != 1.0
    encoding = DTYPES.index(dtype) | (16 if rslora else 0) | (32 if has_alpha and version >= 3 else 0)
    start = varint(kind) + bytes([encoding]) + varint(rank)
    return start + (struct.pack("<f", alpha) if has_alpha else b"") + varint(points)


# Path, and (scales, elements of a group) of each tensor. In version 1 a tensor has one scale, written nowhere.
LORA = {
    "encoder.layer.0.query": [([0.5, 0.0625], 11), ([2.0, 0.25], 7)],
    "head": [([1.0, 4.0], 150), ([0.125, 0.03125], 3)],
}
OTHER = {"pooled": [([0.25, 0.5, 1.0], 5)]}
# From version 3 on: sizes that go without saying, and a negative scale of int4.
SAME = {"up": [([0.5, 0.0625], 9), ([1.0], 9), ([0.25], 2)]}
LAST = {"pooled": [([0.25, -0.5, 1.0], 5)]}


def ordered(points):
    return sorted(points.items(), key=lambda item: blake3(item[0].encode()).digest()[:8])


def table(points, version, rank):
    out = b""
    for path, tensors in ordered(points):
        out += blake3(path.encode()).digest()[:8] + varint(len(tensors))
        for i, (scales, length) in enumerate(tensors):
            if version == 1:
                sizes = [len(scales) * length]
            elif version == 2:
                sizes = [len(scales), length]
            else:
                is_first = i > 0 and length == tensors[0][1]
                sizes = [0 if len(scales) == rank else len(scales), 0 if is_first else length]
            out += b"".join(map(varint, sizes))
    return out


def payloads(points, dtype, version):
    return b"".join(payload(dtype, *tensor, version) for _, tensors in ordered(points) for tensor in tensors)


def record_v1(dtype):
    head = b"INLA\x01" + BASE + header(1, dtype, True, 2, 3.0, len(LORA), 1)
    return sealed(head + table(LORA, 1, 2) + payloads(LORA, dtype, 1))


def record(version, parts):
    """Parts in order: kind, dtype, rslora, rank, alpha, points."""
    body = b"INLA" + bytes([version]) + BASE + bytes([len(parts)])
    for kind, dtype, rslora, rank, alpha, points in parts:
        body += header(kind, dtype, rslora, rank, alpha, len(points), version) + table(points, version, rank)
    return sealed(body + b"".join(payloads(part[5], part[1], version) for part in parts))


def record_v2(dtype, other):
    return record(2, [(1, dtype, True, 2, 3.0, LORA), (300, other, False, 0, 1.0, OTHER)])


def record_v3(dtype, other):
    lora, same = (1, dtype, True, 2, 3.0, LORA), (8, dtype, False, 2, 1.0, SAME)
    return record(3, [lora, same, (300, other, False, 0, 1.0, LAST if other == "int4" else OTHER)])


def state_v1(record):
    arrays = struct.pack("<6f", *[0.5, -1.0, 2.0, 0.25, -0.125, 8.0])
    fields = record[-16:] + varint(1) + varint(300) + varint(7) + bytes([2]) + varint(3)
    return sealed(b"INLS\x01" + fields + arrays)


def sealed_v1(plain, file_name, key, nonce):
    key_id = blake3(key, derive_key_context="Inlay 2026 adapter store key id").digest()[:8]
    named = b"INLX\x01" + key_id
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)  # 24 bytes of nonce: XChaCha20
    cipher.update(named + file_name.encode())
    encrypted, tag = cipher.encrypt_and_digest(plain)
    return named + nonce + encrypted + tag


for dtype in ("f32", "f16"):
    (HERE / f"v1.{dtype}.adapter").write_bytes(record_v1(dtype))
for dtype, other in zip(DTYPES, ["int4", "int8", "f16", "int8"]):
    (HERE / f"v2.{dtype}.adapter").write_bytes(record_v2(dtype, other))
    (HERE / f"v3.{dtype}.adapter").write_bytes(record_v3(dtype, other))
(HERE / "v1.state").write_bytes(state_v1(record_v2("f16", "int8")))
key, nonce = bytes(range(32)), bytes(range(100, 124))
(HERE / "v1.sealed").write_bytes(sealed_v1(record_v2("int4", "int8"), "anna.adapter", key, nonce))
