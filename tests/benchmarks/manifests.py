"""What a load takes with a manifest, which has files compared with their hashes, and without one.

A manifest costs a pass over the files, and saves one over the weights, in search of NaN: it says that there
is none. Loads alternate. The second line is a load and a first pass over all weights, which the search for
NaN would have fetched into this process: mapped files are read when they are first used.

    python tests/benchmarks/manifests.py                  # byt5-small: 1.2 GB among temporary files
    python tests/benchmarks/manifests.py --size tiny
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from transformers.utils import logging

from mrt5cli import manifest
from mrt5cli.benchmark.models import base_model
from mrt5cli.models import load
from mrt5cli.models.weights import seal


def timed(folder: Path, rounds: int) -> dict[bool, list[tuple[float, float, float]]]:
    """Seconds of a load, of a load and a pass over its weights, and the processor's of the latter; with a
    manifest and without."""
    aside, found = folder.with_name("manifest.aside"), {True: [], False: []}
    for number in range(2 * rounds + 2):
        sealed = number % 2 == 0
        if not sealed:
            (folder / manifest.NAME).rename(aside)
        start, used = time.perf_counter(), time.process_time()
        model = load(folder)
        loaded = time.perf_counter() - start
        for weight in model.parameters():
            weight.sum()
        row = loaded, time.perf_counter() - start, time.process_time() - used
        if not sealed:
            aside.rename(folder / manifest.NAME)
        if number > 1:  # the first ones warm up
            found[sealed].append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="byt5-small", choices=("byt5-small", "tiny"))
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        base_model(None, given.size).save_pretrained(folder)
        start = time.perf_counter()
        seal(folder, step=0, metrics=b"")
        print(f"writing it: {time.perf_counter() - start:.3f} s")
        start = time.perf_counter()
        manifest.check(folder)
        print(f"comparing all files: {time.perf_counter() - start:.3f} s")
        found = timed(folder, given.rounds)
    for column, what in enumerate(("load", "load, and a pass", "processor time of both")):
        (kept, low), (without, floor) = (
            (median(row[column] for row in found[sealed]), min(row[column] for row in found[sealed]))
            for sealed in (True, False)
        )
        most, least = 100 * (kept / without - 1), 100 * (low / floor - 1)
        print(
            f"{what:<24} median {kept:.3f} s with, {without:.3f} s without: {most:+.1f} %; "
            f"least {low:.3f} and {floor:.3f}: {least:+.1f} %"
        )


if __name__ == "__main__":
    main()
