#!/usr/bin/env python3
"""Lists a pack, and turns weights of it into NumPy arrays.

    scripts/read_pack.py MODEL.sluice                                  list what is in it
    scripts/read_pack.py MODEL.sluice --tensor NAME --out w.npy        one tensor, dequantized
    scripts/read_pack.py MODEL.sluice --expert 3 17 --projection up --bits 4 --out w.npy

Written from engine/formats/README.md alone and sharing no code with the engine, so that the page is shown to say
enough for another reader. Needs NumPy; checksums are verified where the xxhash package is installed.
"""
import argparse
import dataclasses
import json
import struct
import sys

import numpy as np

try:
    import xxhash
except ImportError:
    xxhash = None

PROJECTIONS = ("gate", "up", "down")
PANEL_ROWS, UNIT_COLS, SUPER_COLS = 16, 32, 256
# Arrays of F16 per 256 columns, and bytes per row and group.
SUPER_ARRAYS = {"f16": 0, "f16_min": 0, "u8_min": 2, "i8": 1, "iq4_f16": 0, "iq4_i8": 1, "e2m1_e8m0": 0}
GROUP_BYTES = {"f16": 2, "f16_min": 4, "u8_min": 2, "i8": 1, "iq4_f16": 2, "iq4_i8": 1, "e2m1_e8m0": 1}
IQ4 = [[-95, -29, 19, 81],
       [-116, -74, -42, -16, 7, 32, 61, 101],
       [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]]
E2M1 = [[-30, -6, 6, 30],
        [-40, -20, -10, -2, 2, 10, 20, 40],
        [-48, -32, -24, -16, -12, -8, -4, 0, 0, 4, 8, 12, 16, 24, 32, 48]]
CODE_TABLES = {"iq4_f16": (IQ4, 1), "iq4_i8": (IQ4, 1), "e2m1_e8m0": (E2M1, 0.25)}  # and what mul is


class PackError(Exception):
    pass


def align(value, to):
    return -(-value // to) * to


def verify(content, checksum, what):
    if xxhash is not None and xxhash.xxh3_64_intdigest(content) != checksum:
        raise PackError(f"{what} does not have its checksum")


def plane_widths(bits):
    return {2: [2], 3: [2, 1], 4: [2, 1, 1], 5: [2, 1, 1, 1], 6: [2, 1, 1, 2], 8: [2, 1, 1, 2, 2]}[bits]


@dataclasses.dataclass
class Layout:
    """How one weight lies: an entry of the index's "layouts", and the weight's own levels."""
    form: str
    rows: int
    cols: int
    dtype: str = ""
    scales: str = ""
    group: int = 0
    bits: int = 0
    levels: list = dataclasses.field(default_factory=list)

    @property
    def planes(self):
        return len(plane_widths(self.bits)) if self.form == "nested" else 1

    @property
    def panels(self):
        return align(self.rows, PANEL_ROWS) // PANEL_ROWS

    @property
    def units(self):
        return align(self.cols, UNIT_COLS) // UNIT_COLS

    @property
    def groups(self):
        return self.units * UNIT_COLS // self.group

    @property
    def supers(self):
        return align(self.cols, SUPER_COLS) // SUPER_COLS

    def super_bytes(self):
        return align(SUPER_ARRAYS[self.scales] * 2 * PANEL_ROWS * self.supers, 64)

    def scale_bytes(self):
        return align(GROUP_BYTES[self.scales] * PANEL_ROWS * self.groups, 64)

    def panel_bytes(self, plane):
        codes = self.units * 64 * plane_widths(self.bits)[plane]
        return codes if plane else self.super_bytes() + self.scale_bytes() + codes

    def plane_bytes(self, plane):
        if plane >= self.planes:
            return 0
        if self.form == "nested":
            return self.panels * self.panel_bytes(plane)
        size = 4 if self.dtype == "F32" else 2
        if self.form == "row_major":
            return self.rows * self.cols * size
        cols = align(self.cols, 2) if self.dtype == "BF16" else self.cols
        return self.panels * PANEL_ROWS * cols * size

    def level(self, planes):
        """mul and add of the leading bits that `planes` planes hold."""
        if self.levels:
            return self.levels[2 * planes - 2:2 * planes]
        if self.scales in CODE_TABLES:
            unit = CODE_TABLES[self.scales][1]
            return [unit, -128 * unit]
        h = 1 << (self.bits - sum(plane_widths(self.bits)[:planes]))
        centre = 1 << (self.bits - 1) if self.scales in ("f16", "i8") else 0
        return [h, (h - 1) / 2 - centre]

    def planes_for(self, bits):
        """The most planes that together have at most `bits` bits, at least one."""
        widths = plane_widths(self.bits) if self.form == "nested" else [2]
        return max([1] + [n for n in range(1, len(widths) + 1) if sum(widths[:n]) <= bits])

    def describe(self):
        if self.form == "nested":
            return f"{self.bits}-bit {self.scales}/{self.group} [{self.rows}, {self.cols}]"
        return f"{self.dtype} {self.form} [{self.rows}, {self.cols}]"


def floats(content, dtype):
    if dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(content, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


def decode_floats(layout, content):
    values = floats(content, layout.dtype)
    if layout.form == "row_major":
        return values.reshape(layout.rows, layout.cols)
    if layout.dtype == "BF16":  # [panel][pair of columns][row][2]
        panels = values.reshape(layout.panels, -1, PANEL_ROWS, 2).transpose(0, 2, 1, 3)
    else:  # [panel][column][row]
        panels = values.reshape(layout.panels, -1, PANEL_ROWS).transpose(0, 2, 1)
    return panels.reshape(layout.panels * PANEL_ROWS, -1)[:layout.rows, :layout.cols].copy()


def decode_codes(layout, raw, width):
    """Fields of `width` bits from a plane's unit vectors, as [panels, 16 rows, padded columns]."""
    vectors = raw.reshape(layout.panels, layout.units, width, PANEL_ROWS, 4)
    fields = np.empty((layout.panels, PANEL_ROWS, layout.units, 8, 4), np.uint8)
    for quad in range(8):
        if width == 2:
            vector, bit = quad // 4, 2 * (quad // 2 % 2) + 4 * (quad % 2)
        else:
            vector, bit = 0, quad // 2 + 4 * (quad % 2)
        part = vectors[:, :, vector] >> bit & (3 if width == 2 else 1)  # [panels, units, rows, 4]
        fields[:, :, :, quad] = part.transpose(0, 2, 1, 3)
    return fields.reshape(layout.panels, PANEL_ROWS, layout.units * UNIT_COLS)


def decode_scales(layout, head):
    """s and m per group as F32 [panels, 16, groups], from the start of every panel of plane 0."""
    supers = head[:, :layout.super_bytes()]
    scales = head[:, layout.super_bytes():]

    def halves(raw, *shape):
        raw = np.ascontiguousarray(raw[:, :2 * int(np.prod(shape))])
        return raw.view("<f2").reshape(-1, *shape).astype(np.float32)

    if layout.scales == "e2m1_e8m0":
        e = scales[:, :layout.groups * PANEL_ROWS].reshape(-1, layout.groups, PANEL_ROWS)
        s = np.ldexp(np.float32(1), e.astype(np.int32) - 128)
        return s.transpose(0, 2, 1), np.zeros_like(s).transpose(0, 2, 1)
    if layout.scales in ("f16", "f16_min", "iq4_f16"):
        arrays = halves(scales, layout.groups, GROUP_BYTES[layout.scales] // 2, PANEL_ROWS)
        s = arrays[:, :, 0]
        m = arrays[:, :, 1] if layout.scales == "f16_min" else np.zeros_like(s)
    else:
        per_group = GROUP_BYTES[layout.scales]
        small = np.ascontiguousarray(scales[:, :layout.groups * per_group * PANEL_ROWS])
        small = small.reshape(-1, layout.groups, per_group, PANEL_ROWS)
        of_group = np.arange(layout.groups) * layout.group // SUPER_COLS
        d = halves(supers, layout.supers, SUPER_ARRAYS[layout.scales], PANEL_ROWS)[:, of_group]
        if layout.scales in ("i8", "iq4_i8"):
            s = d[:, :, 0] * small[:, :, 0].view(np.int8).astype(np.float32)
            m = np.zeros_like(s)
        else:
            s = d[:, :, 0] * small[:, :, 0].astype(np.float32)
            m = -(d[:, :, 1] * small[:, :, 1].astype(np.float32))
    return s.transpose(0, 2, 1), m.transpose(0, 2, 1)


def decode_nested(layout, planes):
    """The matrix at the precision of the given planes (bytes of each), as F32 [rows, cols]."""
    head_bytes = layout.super_bytes() + layout.scale_bytes()
    codes = None
    for plane, content in enumerate(planes):
        raw = np.frombuffer(content, np.uint8).reshape(layout.panels, -1)
        if plane == 0:
            s, m = decode_scales(layout, raw[:, :head_bytes])
            raw = raw[:, head_bytes:]
        width = plane_widths(layout.bits)[plane]
        fields = decode_codes(layout, np.ascontiguousarray(raw), width)
        codes = fields if codes is None else codes << width | fields
    if layout.scales in CODE_TABLES:
        codes = (np.array(CODE_TABLES[layout.scales][0][len(planes) - 1]) + 128)[codes]
    mul, add = (np.float32(x) for x in layout.level(len(planes)))
    spread = [np.repeat(x, layout.group, axis=2) for x in (s, m)]
    values = spread[0] * (mul * codes.astype(np.float32) + add)
    if layout.scales in ("f16_min", "u8_min"):
        values = values + spread[1]
    return values.reshape(layout.panels * PANEL_ROWS, -1)[:layout.rows, :layout.cols].copy()


class Pack:
    def __init__(self, path):
        self.file = open(path, "rb")
        header = self.file.read(4096)
        if len(header) < 4096 or header[:8] != b"SLUICEPK":
            raise PackError(f"{path} is not a pack")
        verify(header[:4088], struct.unpack_from("<Q", header, 4088)[0], "the header")
        self.version, self.align, self.file_bytes = struct.unpack_from("<IIQ", header, 8)
        if self.version != 1:
            raise PackError(f"{path} has version {self.version}; this reads version 1")
        documents = []
        for at, name in ((24, "the metadata"), (48, "the index")):
            offset, size, checksum = struct.unpack_from("<QQQ", header, at)
            documents.append(json.loads(self.read(offset, size, checksum, name)))
        self.metadata, self.index = documents
        self.tensors = {entry["name"]: entry for entry in self.index["tensors"]}

    def read(self, offset, size, checksum, what):
        self.file.seek(offset)
        content = self.file.read(size)
        if len(content) != size:
            raise PackError(f"{what} lies past the end of the file")
        verify(content, checksum, what)
        return content

    def layout(self, number, levels=()):
        return Layout(**self.index["layouts"][number], levels=list(levels))

    def tensor_layout(self, name):
        return self.layout(self.tensors[name]["layout"], self.tensors[name].get("levels", ()))

    def tensor(self, name, bits=8):
        layout, entry = self.tensor_layout(name), self.tensors[name]
        starts = [0]
        for plane in range(layout.planes):
            starts.append(starts[-1] + align(layout.plane_bytes(plane), 64))
        content = self.read(entry["offset"], starts[-1], int(entry["checksum"], 16), f"tensor {name}")
        planes = [content[starts[i]:starts[i] + layout.plane_bytes(i)] for i in range(layout.planes)]
        if layout.form != "nested":
            return decode_floats(layout, planes[0])
        return decode_nested(layout, planes[:layout.planes_for(bits)])

    def expert_layouts(self, layer, index):
        entry = self.index["experts"][layer][index]
        levels = entry.get("levels", [[], [], []])
        return [self.layout(number, own) for number, own in zip(entry["layouts"], levels)]

    def expert(self, layer, index, projection, bits=8):
        entry, layouts = self.index["experts"][layer][index], self.expert_layouts(layer, index)
        which = PROJECTIONS.index(projection)
        wanted = layouts[which].planes_for(bits)
        offset, planes = entry["offset"], []
        for plane in range(wanted):
            sizes = [layout.plane_bytes(plane) for layout in layouts]
            set_bytes = align(sum(align(size, 64) for size in sizes), self.align)
            content = self.read(offset, set_bytes, int(entry["checksums"][plane], 16),
                                f"plane set {plane} of expert {index} of layer {layer}")
            start = sum(align(size, 64) for size in sizes[:which])
            planes.append(content[start:start + sizes[which]])
            offset += set_bytes
        layout = layouts[which]
        return decode_nested(layout, planes) if layout.form == "nested" else decode_floats(layout, planes[0])

    def describe(self):
        yield f"version {self.version}, {self.file_bytes} bytes, plane sets aligned to {self.align}"
        for name, text in self.metadata["files"].items():
            yield f"file {name}: {len(text.encode())} bytes"
        yield f"provenance: {json.dumps(self.metadata.get('provenance'))}"
        for name in self.tensors:
            yield f"tensor {name}: {self.tensor_layout(name).describe()}"
        for layer, experts in enumerate(self.index["experts"]):
            for index in range(len(experts or [])):
                parts = zip(PROJECTIONS, self.expert_layouts(layer, index))
                yield f"expert {layer}/{index}: " + ", ".join(f"{p} {x.describe()}" for p, x in parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("--tensor", metavar="NAME")
    parser.add_argument("--expert", nargs=2, type=int, metavar=("LAYER", "INDEX"))
    parser.add_argument("--projection", choices=PROJECTIONS, default="gate")
    parser.add_argument("--bits", type=int, default=8, help="precision: at most so many leading bits")
    parser.add_argument("--out", help=".npy file to write")
    arguments = parser.parse_args()
    pack = Pack(arguments.pack)
    if arguments.tensor is not None:
        weight = pack.tensor(arguments.tensor, arguments.bits)
    elif arguments.expert is not None:
        weight = pack.expert(*arguments.expert, arguments.projection, arguments.bits)
    else:
        for line in pack.describe():
            print(line)
        return
    if arguments.out:
        np.save(arguments.out, weight)
    else:
        print(weight)


if __name__ == "__main__":
    try:
        main()
    except (OSError, PackError, KeyError, IndexError) as error:
        sys.exit(f"read_pack.py: {error}")
