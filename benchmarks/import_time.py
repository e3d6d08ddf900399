# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What `import hf_segcap` costs, beside the transformers classes that a user of it needs anyway.

python benchmarks/import_time.py --repeats 7
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import median, print_table

STATEMENTS = {
    "transformers": "from transformers import pipeline, SamModel, GPT2LMHeadModel",
    "hf_segcap": "import hf_segcap",
}
TARGET_RATIO = 1.2


def import_seconds(statement: str) -> float:
    """Seconds that one import statement takes in a fresh interpreter."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure(repeats: int) -> float:
    """Prints both times and returns the ratio of the medians. The contenders take turns."""
    for statement in STATEMENTS.values():
        import_seconds(statement)  # compiles bytecode, fills the file cache
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(repeats):
        for name, statement in STATEMENTS.items():
            times[name].append(import_seconds(statement))
    rows = [(f"`{STATEMENTS[name]}`", median(values), min(values), max(values)) for name, values in times.items()]
    print_table([f"import, fresh process, {repeats} times", "median s", "min s", "max s"], rows)
    ratio = median(times["hf_segcap"]) / median(times["transformers"])
    print(f"import ratio: {ratio:.2f} (target at most {TARGET_RATIO})")
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    measure(parser.parse_args().repeats)
