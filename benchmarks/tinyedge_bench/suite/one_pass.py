"""Quantizing in one pass against llama.cpp's two steps: time, peak memory, sizes, in turn on one machine.

    python -m tinyedge_bench.suite.one_pass [--checkpoint DIR] [--runs 3] [--types Q4_K_M,Q8_0,Q6_K,IQ4_XS,Q4_K_M+imatrix]
        [--llama-cpp-bin DIR] [--llama-cpp-convert convert_hf_to_gguf.py] [--keep NAME]

Without --checkpoint a TinyLlama-1.1B-shaped one with random weights is made (2.2 GB). `--llama-cpp-bin` is the folder that
holds llama-quantize; the converter is looked for beside and above it unless it is named, and needs torch and transformers in
the Python that --llama-cpp-python names. Each run measures ours, then theirs, and the ratio is taken run by run; their first
step is the same for every type and measured once a run. `+imatrix` quantizes with an importance matrix of random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyedge_bench.results import Finished, keep, median, run_command
from tinyedge_bench.suite.random_checkpoint import SHAPES, demo_tokenizer, make_checkpoint
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.imatrix.file import write_imatrix
from tinyedge_quantize.imatrix.importance import DEFAULT_CHUNK, Imatrix, SquareSums
from tinyedge_quantize.plan import make_plan
from tinyedge_quantize.recipes import find_recipe

SHAPE = "tinyllama-1.1b"
WITH_IMATRIX = "+imatrix"


@dataclass(frozen=True)
class Peer:
    """llama.cpp's own tools: the converter script and the Python it runs in, and the quantizer."""

    converter: Path | None
    python: str
    quantizer: Path

    def convert(self, checkpoint: Path, target: Path) -> Finished:
        """Checkpoint to BF16 GGUF, which loses nothing and is the smallest step between."""
        return run_command([self.python, str(self.converter), str(checkpoint), "--outtype", "bf16", "--outfile", str(target)])

    def quantize(self, source: Path, target: Path, type_name: str, imatrix: Path | None) -> Finished:
        options = [] if imatrix is None else ["--imatrix", str(imatrix)]
        return run_command([str(self.quantizer), *options, str(source), str(target), type_name])


@dataclass
class Samples:
    """All runs of one type."""

    ours: list[Finished] = field(default_factory=list)
    converts: list[Finished] = field(default_factory=list)
    quantizes: list[Finished] = field(default_factory=list)
    bytes: int = 0
    peer_bytes: int = 0

    def summary(self) -> dict[str, Any]:
        """Medians over the runs, ratios taken run by run; seconds and bytes."""
        result: dict[str, Any] = {
            "runs": len(self.ours),
            "seconds": median([run.seconds for run in self.ours]),
            "seconds_all": [round(run.seconds, 3) for run in self.ours],
            "peak_rss_bytes": max(run.peak_rss_bytes for run in self.ours),
            "busy": median([run.busy for run in self.ours]),
            "bytes": self.bytes,
        }
        if self.quantizes:
            both = [a.seconds + b.seconds for a, b in zip(self.converts, self.quantizes, strict=True)]
            result |= {
                "llama_cpp_convert_seconds": median([run.seconds for run in self.converts]),
                "llama_cpp_quantize_seconds": median([run.seconds for run in self.quantizes]),
                "llama_cpp_convert_peak_rss_bytes": max(run.peak_rss_bytes for run in self.converts),
                "llama_cpp_quantize_peak_rss_bytes": max(run.peak_rss_bytes for run in self.quantizes),
                "llama_cpp_bytes": self.peer_bytes,
                "ratio": median([run.seconds / two for run, two in zip(self.ours, both, strict=True)]),
                "ratio_all": [round(run.seconds / two, 3) for run, two in zip(self.ours, both, strict=True)],
            }
        return result


def find_peer(folder: Path, converter: Path | None, python: str) -> Peer:
    """The tools in `folder`; raises FileNotFoundError when llama-quantize is not there."""
    quantizer = folder / "llama-quantize"
    if not quantizer.is_file():
        raise FileNotFoundError(f"{folder} holds no llama-quantize; build llama.cpp and give its bin folder")
    beside = [parent / "convert_hf_to_gguf.py" for parent in (folder, *folder.resolve().parents[:2])]
    return Peer(converter or next((path for path in beside if path.is_file()), None), python, quantizer)


def measure(checkpoint: Path, types: list[str], runs: int, peer: Peer | None, folder: Path) -> dict[str, Any]:
    """The summary of each type, ours and theirs in turn; files go to `folder` and are deleted."""
    samples = {name: Samples() for name in types}
    ours, bf16, theirs = folder / "ours.gguf", folder / "bf16.gguf", folder / "theirs.gguf"
    imatrix = folder / "imatrix.gguf"
    if any(name.endswith(WITH_IMATRIX) for name in types):
        make_imatrix(checkpoint, imatrix)
    tinyedge = [sys.executable, "-m", "tinyedge", "quantize", str(checkpoint), "-o", str(ours), "-t"]
    run_command([*tinyedge, types[0].removesuffix(WITH_IMATRIX), *_options(types[0], imatrix)])  # fills the page cache for both
    for number in range(runs):
        converted = None
        for name, sample in samples.items():
            type_name = name.removesuffix(WITH_IMATRIX)
            sample.ours.append(run_command([*tinyedge, type_name, *_options(name, imatrix)]))
            sample.bytes = ours.stat().st_size
            if peer is not None:
                converted = converted or _convert(peer, checkpoint, bf16)
                sample.converts.append(converted)
                given = imatrix if name.endswith(WITH_IMATRIX) else None
                sample.quantizes.append(peer.quantize(bf16, theirs, type_name, given))
                sample.peer_bytes = theirs.stat().st_size
            print(f"run {number + 1}: {name} {sample.ours[-1].seconds:.1f} s", file=sys.stderr)
    return {name: sample.summary() for name, sample in samples.items()}


def _options(name: str, imatrix: Path) -> list[str]:
    return ["--imatrix", str(imatrix)] if name.endswith(WITH_IMATRIX) else []


def make_imatrix(checkpoint: Path, path: Path) -> None:
    """An importance matrix for the checkpoint, of seeded random weights: the work is the same as with true ones."""
    with open_checkpoint(checkpoint) as source:
        plan = make_plan(source, find_recipe("Q8_0"))
    random = np.random.default_rng(5)
    tensors = {
        tensor.name: SquareSums(random.chisquare(1, tensor.shape[1]).astype(np.float32), np.array([1], np.int64))
        for tensor in plan.tensors
        if tensor.ggml_type == "Q8_0" and tensor.name.startswith("blk.")
    }
    write_imatrix(Imatrix(path, dict(sorted(tensors.items())), ("random",), 1, DEFAULT_CHUNK), path)


def _convert(peer: Peer, checkpoint: Path, target: Path) -> Finished:
    """Their first step; without their converter ours makes the file and only their second step is compared."""
    if peer.converter is not None:
        return peer.convert(checkpoint, target)
    run_command([sys.executable, "-m", "tinyedge", "quantize", str(checkpoint), "-o", str(target), "-t", "BF16"])
    return Finished(0.0, 0)


def report(results: dict[str, Any]) -> str:
    """The table a person reads."""
    lines = [
        f"{'type':<15}{'ours':>9}{'busy':>6}{'llama.cpp':>22}{'ratio':>8}{'peak ours':>12}{'peak theirs':>16}{'bytes':>16}"
    ]
    for name, row in results.items():
        line = f"{name:<15}{row['seconds']:>7.1f} s{row['busy']:>6.0%}"
        if "ratio" in row:
            steps = f"{row['llama_cpp_convert_seconds']:.1f} + {row['llama_cpp_quantize_seconds']:.1f} s"
            peaks = (
                f"{row['llama_cpp_convert_peak_rss_bytes'] / 1e6:.0f}, {row['llama_cpp_quantize_peak_rss_bytes'] / 1e6:.0f} MB"
            )
            line += f"{steps:>22}{row['ratio']:>8.2f}{row['peak_rss_bytes'] / 1e6:>9.0f} MB{peaks:>16}"
        else:
            line += f"{'':>22}{'':>8}{row['peak_rss_bytes'] / 1e6:>9.0f} MB{'':>16}"
        lines.append(line + f"{row['bytes']:>16,}")
    return "\n".join([*lines, f"medians of {next(iter(results.values()))['runs']} runs in turn; ratios run by run"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one-pass quantizing against llama.cpp's two steps.")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model for the checkpoint that is made (default: the demo's)")
    parser.add_argument("--types", default="Q4_K_M,Q8_0,Q6_K,IQ4_XS,Q4_K_M+imatrix")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--llama-cpp-bin", type=Path)
    parser.add_argument("--llama-cpp-convert", type=Path)
    parser.add_argument("--llama-cpp-python", default=sys.executable)
    parser.add_argument("--keep", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
    options = parser.parse_args()
    peer = None
    if options.llama_cpp_bin is not None:
        peer = find_peer(options.llama_cpp_bin, options.llama_cpp_convert, options.llama_cpp_python)
    with tempfile.TemporaryDirectory(prefix="one-pass-") as name:
        folder = Path(name)
        checkpoint = options.checkpoint
        if checkpoint is None:
            checkpoint = folder / SHAPE
            print(f"making a {SHAPE} checkpoint with random weights", file=sys.stderr)
            make_checkpoint(checkpoint, SHAPES[SHAPE], options.tokenizer or demo_tokenizer())
        results = measure(checkpoint, options.types.split(","), options.runs, peer, folder)
    print(report(results))
    if options.keep:
        print(keep(options.keep, {"benchmark": "one_pass", "shape": SHAPE, "types": results}))


if __name__ == "__main__":
    main()
