#!/usr/bin/env python3
"""Checks the dependency rules of the modules from their includes.

Dependencies point one way (README, "The house"): every `#include "a/b/..."` of a module must be of the module
itself, of one listed for it below, or of one that those reach. Only server/ may include Asio, Beast and
prometheus-cpp, only kernels/cuda CUDA's headers; kernels/ includes nothing of the engine. Exits 1 with one line per broken rule.
"""
import pathlib
import re
import sys

DIRECT = {
    "kernels/common": [],
    "kernels/reference": ["kernels/common"],
    "kernels/cpu": ["kernels/common"],
    "kernels/cuda": ["kernels/common"],
    "engine/base": [],
    "engine/tensor": ["engine/base", "kernels/common", "kernels/cpu"],
    "engine/arch": ["engine/base", "engine/tensor", "kernels/common"],
    "engine/formats": ["engine/base", "engine/tensor", "kernels/common"],
    "engine/experts": ["engine/arch", "engine/formats", "engine/tensor"],
    "engine/model": ["engine/experts"],
    "engine/convert": ["engine/model", "engine/text"],
    "engine/text": ["engine/base"],
    "engine/sampling": ["engine/base"],
    "engine/scheduler": ["engine/base", "engine/sampling"],
    "engine/runtime": ["engine/model", "engine/scheduler", "engine/sampling", "engine/text"],
    "server": ["engine/runtime", "engine/convert", "engine/text", "engine/base"],
}
# CUDA's own headers, in kernels/cuda alone.
CUDA_ONLY = re.compile(r"^(cuda|cublas)")
SERVER_ONLY = re.compile(r"^(boost/(asio|beast)|prometheus/)")
# The seam headers that the server may name: engine.h hands them out, packs are told from other files and inspected.
SERVER_REACHES = {"engine/model", "engine/experts", "engine/sampling", "engine/arch", "engine/formats", "kernels/common", "kernels/cpu"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def reachable(module):
    seen, todo = set(), [module]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(DIRECT.get(current, []))
    return seen


def module_of(path):
    parts = path.split("/")
    if parts[0] == "server":
        return "server"
    return "/".join(parts[:2]) if len(parts) > 2 else None


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    errors, checked = [], 0
    for top in ("kernels", "engine", "server"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in (".h", ".cc", ".cu", ".cuh"):
                continue
            name = path.relative_to(root).as_posix()
            module = module_of(name)
            if module not in DIRECT:
                errors.append(f"{name}: module {module} is not in the dependency table of check_layers.py")
                continue
            allowed = reachable(module)
            if module == "server":
                allowed = {"server", "engine/runtime", "engine/convert", "engine/text", "engine/base"} | SERVER_REACHES
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                kind, target = match.groups()
                checked += 1
                if SERVER_ONLY.match(target) and module != "server":
                    errors.append(f"{name}:{number}: only server/ may include <{target}>")
                if CUDA_ONLY.match(target) and module != "kernels/cuda":
                    errors.append(f"{name}:{number}: only kernels/cuda may include <{target}>")
                if kind == '"':
                    other = module_of(target)
                    if other is None or not (root / target).exists():
                        errors.append(f"{name}:{number}: \"{target}\" is not a path from the repository root")
                    elif other not in allowed:
                        errors.append(f"{name}:{number}: {module} may not include {other} ({target})")
    for error in errors:
        print(error)
    print(f"{checked} includes checked, {len(errors)} broken rules")
    return 1 if errors or checked == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
