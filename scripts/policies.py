#!/usr/bin/env python3
"""Compares the cache policies on traces, with `sluice trace`.

    scripts/policies.py                            records, synthesizes and replays: policies.json, plots, tables
    scripts/policies.py --add NAME=FILE.trace      one more trace, recorded elsewhere
    scripts/policies.py --tables                   the tables again, from policies.json

Traces (all but --add's are made anew, from seeds or from the demo model, and deleted):
  demo         the demo model on the texts of tests/data/heldout: documents of 128 prompt tokens, prefilled, and 128
               more, one per step
  demo-4       the same, four documents at a time
  skew         synthetic, OLMoE's shape (16 layers of 64 experts, 8 chosen): popularity falls as 1/rank, no locality
  locality     synthetic: 85% of choices come from the recently used; plain LRU hits about 80% at half capacity
  predicted    the same parameters with predictions for the next layer that name 85% of what is chosen, used and read ahead
  uniform      synthetic: routing at random
  prompts      synthetic, uniform: prompts of 256 tokens, nothing else: every step uses every expert

The committed comparison has one that was added: olmoe-random, random weights in OLMoE's shape at Q4_0 on random tokens
(`sluice trace record --prompt-tokens 32 --decode-tokens 48 --documents 16`).

--out gets policies.json, one SVG per trace and, in README.md, what stands between the lines "<!-- tables -->" and
"<!-- end of tables -->".
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POLICIES = ["next-use", "lru", "lfu", "arc", "least-stale", "shallow", "look-ahead", "none"]
BUDGETS = ["75%", "50%", "25%", "10%"]
OLMOE = ["--layers", "16", "--experts", "64", "--experts-per-token", "8", "--expert-bytes", "3538944"]
LOCAL = ["--skew", "0.3", "--locality", "0.85", "--recency-depth", "12"]
SYNTHETIC = {
    "skew": OLMOE + ["--skew", "1", "--documents", "8"],
    "locality": OLMOE + LOCAL + ["--documents", "8"],
    "predicted": OLMOE + LOCAL + ["--documents", "8", "--horizon", "1", "--recall", "0.85"],
    "uniform": OLMOE + ["--documents", "8"],
    "prompts": OLMOE + ["--prompt-tokens", "256", "--decode-tokens", "0", "--documents", "40"],
}
RECORDED = {"demo": [], "demo-4": ["--streams", "4"]}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(ROOT, "build/sluice"), help="default: build/sluice")
    parser.add_argument("--model", default=os.path.join(ROOT, "deploy/demo-model"), help="default: the demo model")
    parser.add_argument("--out", default=os.path.join(ROOT, "config/policies"), help="default: config/policies")
    parser.add_argument("--add", action="append", default=[], metavar="NAME=FILE", help="another trace to replay")
    parser.add_argument("--only-added", action="store_true", help="keep the other results in policies.json")
    parser.add_argument("--tables", action="store_true", help="write the tables from policies.json, measure nothing")
    return parser.parse_args()


def sluice(args, *words):
    return subprocess.run([args.binary, "trace", *words], check=True, stdout=subprocess.PIPE).stdout


def make_traces(args, directory):
    texts = sorted(glob.glob(os.path.join(ROOT, "tests/data/heldout/*.txt")))
    for name, options in RECORDED.items():
        path = os.path.join(directory, name)
        sluice(args, "record", "--model", args.model, "--text", *texts, "--out", path, *options)
        yield name, path
    for name, options in SYNTHETIC.items():
        path = os.path.join(directory, name)
        sluice(args, "synthesize", "--out", path, *options)
        yield name, path


def replay(args, name, path):
    words = ["--horizon", "1"] if name == "predicted" else []
    plot = os.path.join(args.out, name + ".svg")
    return json.loads(sluice(args, "replay", path, "--policy", ",".join(POLICIES), "--budget", ",".join(BUDGETS),
                             "--json", "--plot", plot, "--title", name, *words))


def tables(results):
    lines = []
    for name, report in results.items():
        trace = report["trace"]
        lines += [f"### {name}", "",
                  f"{trace['layers']} layers of {trace['experts_per_layer']} experts, {trace['experts_per_token']} per "
                  f"token, {trace['steps']} steps. Hit rate in %, in parentheses simulated tokens per second.", "",
                  "| policy | " + " | ".join(BUDGETS) + " |", "|---|" + "---|" * len(BUDGETS)]
        for policy in ["optimal"] + POLICIES:
            rows = [row for row in report["replays"] if row["policy"] == policy]
            cells = [f"{100 * row['hit_rate']:.1f} ({row['tokens_per_second']:.3g})" for row in rows]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
        lines += ["", f"![hit rate by budget]({name}.svg)", ""]
    return "\n".join(lines)


def main():
    args = arguments()
    os.makedirs(args.out, exist_ok=True)
    json_path = os.path.join(args.out, "policies.json")
    results = {}
    if os.path.exists(json_path):
        with open(json_path) as file:
            results = json.load(file)
    if not args.tables:
        with tempfile.TemporaryDirectory() as directory:
            traces = [] if args.only_added else list(make_traces(args, directory))
            for added in args.add:
                name, _, path = added.partition("=")
                if not path:
                    sys.exit(f"policies.py: --add wants NAME=FILE, not {added}")
                traces.append((name, path))
            for name, path in traces:
                print(name, file=sys.stderr)
                results[name] = replay(args, name, path)
                with open(json_path, "w") as file:
                    json.dump(results, file, indent=1)
                    file.write("\n")
    readme = os.path.join(args.out, "README.md")
    with open(readme) as file:
        text = file.read()
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->"
    head, rest = text.split(begin, 1)
    with open(readme, "w") as file:
        file.write(head + begin + "\n" + tables(results) + "\n" + end + rest.split(end, 1)[1])


if __name__ == "__main__":
    main()
