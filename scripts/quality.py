#!/usr/bin/env python3
"""Measures what quantization costs, with `sluice pack` and `sluice eval`.

    scripts/quality.py                          all packs and read-outs: quality.json, frontier.svg, tables
    scripts/quality.py --plot                   the plot and the tables again, from quality.json
    scripts/quality.py --add "Q4_K_M=m.gguf"    measure a model file made elsewhere as a point to compare with

Every point is one pack of --model (or one pack read at a lower precision) with
  file_bytes   of the pack; for a pack read at a lower precision, of the pack made at that precision, which is what
               must be read of it,
  expert_bits  bytes of the routed experts' planes and scales, in bits per weight,
  weight_bytes of all weights: the file without tokenizer, index and padding,
  kl_per_token mean over all tokens of --texts of the divergence from --model's own predictions, in nats,
  top1         share of these tokens where both prefer the same next token,
  accuracy     mean over the task files of --tasks of the share of items answered exactly.
Packs are made in a temporary directory, one at a time, and deleted. The calibration is the one that sluice carries; the
texts and tasks here are no part of it. Points added with --add are kept under "others" in quality.json and
survive a new run; what is known of them beyond the measurement comes from --note. --points takes such points from
another quality.json.

--out gets quality.json, frontier.svg (needs matplotlib: scripts/quality_requirements.txt) and, in README.md, whatever
stands between the lines "<!-- tables -->" and "<!-- end of tables -->". expert_bits and weight_bytes of points of --add
are given with --expert-bits and --weight-bytes; those that have them are in the table of equal quality.
"""
import argparse
import glob
import json
import math
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ALLOCATED = (2, 2.25, 2.5, 2.75, 3, 3.5, 4, 5, 6, 8)
LADDER = (2, 3, 4, 6, 8)
NESTED = (8, 4)  # uniform packs that are read at every lower precision, too
LEAN = 4         # bits of a uniform pack, dense weights too, that is read at every precision up to it


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(ROOT, "build/sluice"), help="default: build/sluice")
    parser.add_argument("--model", default=os.path.join(ROOT, "deploy/demo-model"),
                        help="the unquantized model (default: deploy/demo-model)")
    parser.add_argument("--out", default=os.path.join(ROOT, "config/quality"), help="default: config/quality")
    parser.add_argument("--texts", default=os.path.join(ROOT, "tests/data/heldout/*.txt"), metavar="GLOB")
    parser.add_argument("--tasks", default=os.path.join(ROOT, "tests/data/tasks/*.jsonl"), metavar="GLOB")
    parser.add_argument("--context", type=int, default=192, help="tokens per window of text (default: 192)")
    parser.add_argument("--dense-bits", type=int, default=8, help="bits of all but routed experts (default: 8)")
    parser.add_argument("--bits", type=float, nargs="+", default=ALLOCATED, help="averages to allocate (default: ten)")
    parser.add_argument("--threads", type=int, default=0, help="of packing and evaluation; no figure depends on it")
    parser.add_argument("--resume", action="store_true", help="keep what quality.json has; measure what it lacks")
    parser.add_argument("--plot", action="store_true", help="measure nothing; plot and tables from quality.json")
    parser.add_argument("--add", action="append", default=[], metavar="NAME=FILE",
                        help="measure FILE (anything that --model of sluice takes) as a point to compare with")
    parser.add_argument("--points", metavar="FILE", help="measure nothing; take the points of --add from this JSON file")
    parser.add_argument("--file-bytes", type=int, help="size to report for --add, where FILE stands for another one")
    parser.add_argument("--expert-bits", type=float, help="of --add: bits per weight of its routed experts")
    parser.add_argument("--weight-bytes", type=int, help="of --add: bytes of its weights")
    parser.add_argument("--note", default="", help="remark kept with the points of --add")
    return parser.parse_args()


class Meter:
    def __init__(self, options):
        self.options = options
        self.texts = sorted(glob.glob(options.texts))
        self.tasks = sorted(glob.glob(options.tasks))
        if not self.texts or not self.tasks:
            sys.exit(f"no files match {options.texts if not self.texts else options.tasks}")
        self.start = time.monotonic()

    def sluice(self, *args):
        command = [self.options.binary, *map(str, args), "--threads", str(self.options.threads), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"failed ({done.returncode}): {' '.join(command)}\n{done.stderr.strip()}")
        return json.loads(done.stdout)

    def evaluate(self, model, precision=0, reference=True):
        level = ("--precision", precision)
        divergence = agreement = surprise = tokens = 0
        for text in self.texts:
            against = ("--reference", self.options.model) if reference else ()
            scores = self.sluice("eval", "--model", model, "--text", text, "--context", self.options.context,
                                 *level, *against)
            tokens += scores["tokens"]
            surprise += scores["tokens"] * scores["nll_per_token"]
            if reference:
                divergence += scores["tokens"] * scores["kl_per_token"]
                agreement += scores["tokens"] * scores["top1_agreement"]
        accuracy = self.sluice("eval", "--model", model, "--tasks", *self.tasks, *level)["accuracy"]
        point = {"nll_per_token": surprise / tokens}
        if reference:
            point.update(kl_per_token=divergence / tokens, top1=agreement / tokens)
        point["accuracy"] = sum(accuracy.values()) / len(accuracy)
        point["accuracy_by_task"] = accuracy
        return {key: rounded(value) for key, value in point.items()}

    def report(self, name, point):
        print(f"{time.monotonic() - self.start:6.0f} s  {name:24}"
              f" {point.get('file_bytes', 0) / 1e6:7.3f} MB"
              f"  KL {point.get('kl_per_token', 0):8.5f}  top-1 {point.get('top1', 1):.4f}"
              f"  accuracy {point['accuracy']:.4f}", flush=True)

    def pack(self, directory, bits, uniform, dense_bits=None):
        path = os.path.join(directory, "candidate.sluice")
        made = self.sluice("pack", self.options.model, path, "--bits", bits, "--dense-bits",
                           dense_bits or self.options.dense_bits, *(("--uniform",) if uniform else ()))
        experts = expert_values(self.options.model)
        dense = made["source_bytes"] // 2 - experts  # of a BF16 source
        weight_bytes = round((made["expert_bits"] * experts + made["dense_bits"] * dense) / 8)
        return path, {"file_bytes": made["pack_bytes"], "expert_bits": rounded(made["expert_bits"]),
                      "weight_bytes": weight_bytes}

    def measure_lean(self, found, keep, directory):
        """One pack with few bits everywhere at each of its precisions."""
        levels = [level for level in LADDER if level <= LEAN and not find(found["lean"], level)]
        if not levels:
            return
        path, _ = self.pack(directory, LEAN, True, LEAN)
        small = os.path.join(directory, "small")
        os.mkdir(small)
        for level in levels:
            _, size = self.pack(small, level, True, LEAN)
            found["lean"].append({"bits": level, "pack_bits": LEAN, **size, **self.evaluate(path, level)})
            self.report(f"{LEAN}-bit pack, all of it, at {level}", found["lean"][-1])
            keep(found)

    def measure_all(self, found, keep):
        """Adds to `found` what it lacks."""
        if "reference" not in found:
            found["reference"] = self.evaluate(self.options.model, reference=False)
            self.report("unquantized", found["reference"])
        with tempfile.TemporaryDirectory() as directory:
            for bits in LADDER:
                lower = [level for level in LADDER if level < bits] if bits in NESTED else []
                missing = [level for level in lower if not find(found["nested"], level, pack_bits=bits)]
                if find(found["uniform"], bits) and not missing:
                    continue
                path, size = self.pack(directory, bits, True)
                if not find(found["uniform"], bits):
                    found["uniform"].append({"bits": bits, **size, **self.evaluate(path)})
                    self.report(f"uniform {bits}", found["uniform"][-1])
                    keep(found)
                for level in missing:
                    same = find(found["uniform"], level)
                    size = {key: same[key] for key in ("file_bytes", "expert_bits", "weight_bytes")}
                    point = {"bits": level, "pack_bits": bits, **size, **self.evaluate(path, level)}
                    found["nested"].append(point)
                    self.report(f"{bits}-bit pack read at {level}", point)
                    keep(found)
            self.measure_lean(found, keep, directory)
            for bits in self.options.bits:
                if find(found["allocated"], bits):
                    continue
                path, size = self.pack(directory, bits, False)
                found["allocated"].append({"bits": bits, **size, **self.evaluate(path)})
                self.report(f"allocated {bits:g}", found["allocated"][-1])
                found["allocated"].sort(key=lambda point: point["bits"])
                keep(found)

    def measure_others(self):
        for spec in self.options.add:
            name, _, path = spec.partition("=")
            size = self.options.file_bytes or os.path.getsize(path)
            known = {"expert_bits": self.options.expert_bits, "weight_bytes": self.options.weight_bytes}
            point = {"name": name, "note": self.options.note, "file_bytes": size,
                     **{key: value for key, value in known.items() if value}, **self.evaluate(path)}
            self.report(name, point)
            yield point


def expert_values(model):
    with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    experts = config.get("num_experts", config.get("num_local_experts"))
    return 3 * config["hidden_size"] * width * experts * config["num_hidden_layers"]


def find(points, bits, **also):
    wanted = {"bits": bits, **also}
    return next((p for p in points if all(p[key] == value for key, value in wanted.items())), None)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}")


def series(found):
    """Of each line of the plot: label, points, marker."""
    yield "allocated per expert", found["allocated"], "o-"
    yield "same bits for all experts", found["uniform"], "s--"
    for bits in NESTED:
        points = [p for p in found["nested"] if p["pack_bits"] == bits]
        points += [p for p in found["uniform"] if p["bits"] == bits]
        yield f"one {bits}-bit pack, read at less", points, "^:"
    if found.get("lean"):
        yield f"the same with {LEAN} bits for dense weights", found["lean"], "v:"


def plot(found, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sluice", "font.size": 9})
    import matplotlib.pyplot as plt
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 9), sharex=True, layout="constrained")
    for axis, key in ((above, "kl_per_token"), (below, "accuracy")):
        for label, points, marker in series(found):
            axis.plot([p["file_bytes"] / 1e6 for p in points], [p[key] for p in points], marker, label=label,
                      markersize=4, linewidth=1.2)
        for is_stand_in, marker, label in ((False, "x", "llama.cpp files"), (True, "+", "llama.cpp, blocks across rows")):
            others = [p for p in found.get("others", []) if p["name"].startswith("across rows, ") == is_stand_in]
            if not others:
                continue
            axis.plot([p["file_bytes"] / 1e6 for p in others], [p[key] for p in others], "k" + marker, label=label)
            for p in others:
                axis.annotate(p["name"].removeprefix("across rows, "), (p["file_bytes"] / 1e6, p[key]), fontsize=6,
                              xytext=(3, 3), textcoords="offset points")
        axis.grid(True, which="both", linewidth=0.3)
    above.set_yscale("log")
    above.set_ylabel("KL divergence per token, nats")
    below.axhline(found["reference"]["accuracy"], color="gray", linewidth=0.8, label="unquantized")
    below.set_ylabel("exact answers, mean over task files")
    below.set_xlabel("file, MB")
    above.legend()
    below.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def tables(found):
    def row(*cells):
        return "| " + " | ".join(cells) + " |"

    def figures(point):
        return (f"{point['file_bytes'] / 1e6:.3f}", f"{point['kl_per_token']:.5f}", f"{100 * point['top1']:.2f}%",
                f"{100 * point['accuracy']:.2f}%")

    lines = [f"Unquantized: {100 * found['reference']['accuracy']:.2f}% of the answers are exact.", ""]
    for title, points in (("Allocated per expert (`--bits X`)", found["allocated"]),
                          ("Same bits for all experts (`--uniform`)", found["uniform"])):
        lines += [title + ":", "", row("bits", "with scales", "MB", "KL per token", "same top-1", "accuracy"),
                  "|---|---|---|---|---|---|"]
        lines += [row(f"{p['bits']:g}", f"{p['expert_bits']:.2f}", *figures(p)) for p in points] + [""]
    lines += ["One pack read at a lower precision (MB: of the pack made at that precision):", "",
              row("pack", "read at", "MB", "KL per token", "same top-1", "accuracy"), "|---|---|---|---|---|---|"]
    lines += [row(f"{p['pack_bits']} bits", f"{p['bits']}", *figures(p)) for p in found["nested"]] + [""]
    if found.get("lean"):
        lines += [f"One pack with {LEAN} bits for everything, read at each precision (MB as above):", "",
                  row("read at", "with scales", "MB", "of it weights", "KL per token", "same top-1", "accuracy"),
                  "|---|---|---|---|---|---|---|"]
        lines += [row(f"{p['bits']}", f"{p['expert_bits']:.2f}", f"{p['file_bytes'] / 1e6:.3f}",
                      f"{p['weight_bytes'] / 1e6:.3f}", *figures(p)[1:]) for p in found["lean"]] + [""]
    same = list(equal_quality(found))
    if same:
        lines += ["Equal quality: what of ours has the same KL, interpolated between measured points (KL "
                  "logarithmically). Bits are of routed experts, \"with scales\" all that is stored for them; MB are weights "
                  "without tokenizer, index and padding; dense weights of ours have 8 bits:", "",
                  row("theirs", "KL", "with scales", "MB", "ours allocated: bits", "with scales", "MB",
                      "4-bit pack read at: bits", "with scales", "MB"), "|---" * 10 + "|"]
        lines += [row(*cells) for cells in same] + [""]
    if found.get("others"):
        ours = found["allocated"] + [p for p in found["uniform"] if not find(found["allocated"], p["bits"])]
        lines += ["Others' files (see above). The last column is KL per token of our pack of the same size, interpolated "
                  "logarithmically between its neighbours (allocated ones; uniform where none was allocated):", "",
                  row("file", "what it is", "MB", "KL per token", "same top-1", "accuracy", "our KL, same MB"),
                  "|---|---|---|---|---|---|---|"]
        lines += [row(p["name"], p["note"], *figures(p), at_bytes(ours, p["file_bytes"]))
                  for p in found["others"]] + [""]
    return "\n".join(lines)


def equal_quality(found):
    """Rows: what of ours has the divergence of each of the others whose bits are known."""
    nested = [p for p in found["nested"] if p["pack_bits"] == 4] + [p for p in found["uniform"] if p["bits"] == 4]
    for other in found.get("others", []):
        if "expert_bits" not in other:
            continue
        cells = [other["name"], f"{other['kl_per_token']:.5f}", f"{other['expert_bits']:.2f}",
                 f"{other['weight_bytes'] / 1e6:.3f}"]
        for points in (found["allocated"], nested):
            for key, scale, digits in (("bits", 1, 2), ("expert_bits", 1, 2), ("weight_bytes", 1e6, 3)):
                value = at_divergence(points, other["kl_per_token"], key)
                cells.append(f"{value / scale:.{digits}f}" if value else "-")
        yield cells


def at_divergence(points, divergence, key):
    """`key` between the two points round `divergence`, by its logarithm; None outside of them."""
    points = sorted(points, key=lambda p: -p["kl_per_token"])
    for low, high in zip(points, points[1:]):
        if low["kl_per_token"] >= divergence >= high["kl_per_token"]:
            share = math.log(low["kl_per_token"] / divergence) / math.log(low["kl_per_token"] / high["kl_per_token"])
            return low[key] + share * (high[key] - low[key])
    return None


def at_bytes(points, size):
    points = sorted(points, key=lambda p: p["file_bytes"])
    for low, high in zip(points, points[1:]):
        if low["file_bytes"] <= size <= high["file_bytes"]:
            share = (size - low["file_bytes"]) / max(1, high["file_bytes"] - low["file_bytes"])
            return f"{low['kl_per_token'] ** (1 - share) * high['kl_per_token'] ** share:.5f}"
    if size > points[-1]["file_bytes"]:
        return f"{points[-1]['kl_per_token']:.5f} at {points[-1]['file_bytes'] / 1e6:.3f}"
    return f"none; {points[0]['kl_per_token']:.5f} at {points[0]['file_bytes'] / 1e6:.3f}"


def fill_tables(path, text):
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->"
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        page = file.read()
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(before + begin + text + end + after)


def main():
    options = arguments()
    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, "quality.json")
    found = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)

    def keep(measured):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(measured, file, indent=1)
            file.write("\n")

    if options.points:
        with open(options.points, encoding="utf-8") as file:
            added = json.load(file)["others"]
        names = {point["name"] for point in added}
        found["others"] = [p for p in found.get("others", []) if p["name"] not in names] + added
        keep(found)
    elif options.add:
        meter = Meter(options)
        for point in meter.measure_others():
            kept = [p for p in found.get("others", []) if p["name"] != point["name"]]
            found["others"] = kept + [point]
            keep(found)
    elif not options.plot:
        started = found if options.resume else {"others": found.get("others", [])}
        for kind in ("uniform", "nested", "allocated", "lean"):
            started.setdefault(kind, [])
        Meter(options).measure_all(started, keep)
        found = started
    if not found.get("allocated"):
        return
    plot(found, os.path.join(options.out, "frontier.svg"))
    fill_tables(os.path.join(options.out, "README.md"), tables(found))


if __name__ == "__main__":
    main()
