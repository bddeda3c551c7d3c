"""The boards' wheels: size, time to build and to prove, and which CPU variant each processor gets.

    python -m tinyedge_bench.suite.board_wheels [--keep NAME]

Builds with an empty cache of builds, then asks for the same again. The download of the sources and of the emulator's Debian is
in neither: the times are the compiler's and the proof's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from tinyedge_bench.results import keep

# What each command is asked for; the boards share one wheel where they can.
REQUESTS = {
    "64-bit ARM, all variants": ("--board", "aarch64"),
    "32-bit ARM": ("--board", "armv7"),
    "Raspberry Pi 5 only": ("--board", "rpi5", "--single"),
}
_KEPT_CACHES = ("sdists", "emulation")


def _wheel(arguments: tuple[str, ...], folder: Path, cache: Path) -> tuple[dict[str, Any], float]:
    """What `tinyedge wheel` says, and the seconds it took."""
    begun = perf_counter()
    command = [sys.executable, "-m", "tinyedge", "wheel", *arguments, "-o", str(folder), "--json"]
    done = subprocess.run(
        command, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    )
    (wheel,) = json.loads(done.stdout)["wheels"]
    return wheel, perf_counter() - begun


def measure() -> dict[str, Any]:
    """A row for each request: bytes, seconds, and each processor's trial."""
    rows = {}
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "tinyedge")
    for title, arguments in REQUESTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            cache = Path(temporary, "cache")
            (cache / "tinyedge").mkdir(parents=True)
            for name in _KEPT_CACHES:
                if (own / name).is_dir():
                    (cache / "tinyedge" / name).symlink_to(own / name)
            cold, _ = _wheel(arguments, Path(temporary), cache)
            warm, seconds = _wheel(arguments, Path(temporary), cache)
            if warm["build_seconds"]:
                raise RuntimeError("the second request was built anew")
            shutil.rmtree(cache)
        proof = warm["proof"]
        rows[title] = {
            "bytes": cold["bytes"],
            "compiler": cold["compiler"],
            "build_seconds": cold["build_seconds"],
            "proof_seconds": round(proof["seconds"], 1),
            "again_seconds": round(seconds, 1),
            "trials": [
                {
                    "cpu": trial["cpu"],
                    "variant": trial["variant"],
                    "seconds": round(trial["seconds"], 1),
                    "worst_mean_kl": max(mean for mean, _ in trial["divergence"].values()),
                }
                for trial in proof["trials"]
            ],
        }
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the boards' wheels.")
    parser.add_argument("--keep", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
    options = parser.parse_args()
    result = {"wheels": measure()}
    if options.keep:
        print(keep(options.keep, result))
    else:
        print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
