#!/usr/bin/env python3
"""Writes tests/data/gguf: small GGUF files with every tensor type that is read, and what they dequantize to.

The files are laid out here by hand (the format is a few lines); the expected values come from the `gguf` package's own
dequantization of the same random blocks. Blocks whose scales decode to infinities or NaNs are redrawn.

    python3 scripts/goldens/gguf_goldens.py
"""
import json
import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "gguf"
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
         "IQ4_XS", "MXFP4"]
ALIGNMENT = 32


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, payload):
    return string(key) + struct.pack("<I", kind) + payload


METADATA = [
    pair("general.architecture", 8, string("olmoe")),
    pair("general.alignment", 4, struct.pack("<I", ALIGNMENT)),
    pair("test.u8", 0, struct.pack("<B", 200)),
    pair("test.i8", 1, struct.pack("<b", -5)),
    pair("test.u16", 2, struct.pack("<H", 65535)),
    pair("test.i16", 3, struct.pack("<h", -300)),
    pair("test.i32", 5, struct.pack("<i", -70000)),
    pair("test.f32", 6, struct.pack("<f", 1.5)),
    pair("test.bool", 7, b"\x01"),
    pair("test.u64", 10, struct.pack("<Q", 1 << 40)),
    pair("test.i64", 11, struct.pack("<q", -(1 << 40))),
    pair("test.f64", 12, struct.pack("<d", 1e-3)),
    pair("test.strings", 9, struct.pack("<IQ", 8, 3) + string("a") + string("") + string("größe")),
    pair("test.floats", 9, struct.pack("<IQff", 6, 2, 0.5, -2.0)),
    pair("test.ints", 9, struct.pack("<IQiii", 5, 3, 1, -2, 3)),
]


def file_bytes(version, metadata, tensors):
    """tensors: (name, type number, shape row-major, bytes)."""
    head = struct.pack("<IIQQ", 0x46554747, version, len(tensors), len(metadata)) + b"".join(metadata)
    offset, body = 0, b""
    for name, kind, shape, data in tensors:
        head += string(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(shape)) + struct.pack("<IQ", kind, offset)
        data += b"\0" * (-len(data) % ALIGNMENT)
        body += data
        offset += len(data)
    return head + b"\0" * (-len(head) % ALIGNMENT) + body


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    tensors, expected = [], np.zeros(0, np.float32)
    index = []
    for name in TYPES:
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        columns = max(values, 32) * 2
        blocks = columns * 3 // values
        while True:
            data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
            with np.errstate(all="ignore"):
                out = quants.dequantize(data.reshape(-1), kind).astype(np.float32).reshape(-1)
            bad = ~np.isfinite(out.reshape(blocks, -1)).all(axis=1)
            if not bad.any():
                break
            while bad.any():
                data[bad] = rng.integers(0, 256, (int(bad.sum()), size), dtype=np.uint8)
                with np.errstate(all="ignore"):
                    out = quants.dequantize(data.reshape(-1), kind).astype(np.float32).reshape(-1)
                bad = ~np.isfinite(out.reshape(blocks, -1)).all(axis=1)
            break
        tensors.append((f"tensor.{name}", int(kind), (3, columns), data.tobytes()))
        index.append({"name": f"tensor.{name}", "type": name, "shape": [3, columns], "first": len(expected)})
        expected = np.concatenate([expected, out])
    (OUT / "types.gguf").write_bytes(file_bytes(3, METADATA, tensors))
    (OUT / "version2.gguf").write_bytes(file_bytes(2, METADATA, tensors[:1]))
    for part in range(2):
        split = METADATA + [pair("split.count", 2, struct.pack("<H", 2)), pair("split.no", 2, struct.pack("<H", part))]
        (OUT / f"split-{part + 1:05d}-of-00002.gguf").write_bytes(file_bytes(3, split, tensors[3 + part : 4 + part]))
    expected.tofile(OUT / "types.f32")
    (OUT / "types.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
