"""Fills the README's figures and outputs from what was measured and recorded, so that none is typed by hand.

python -m tinyedge_bench.readme            write the blocks between <!-- begin NAME --> and <!-- end NAME -->
python -m tinyedge_bench.readme --check    fail when the README differs from the kept results
python -m tinyedge_bench.readme --record [NAME...]   run the commands whose output the README shows, and keep it
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from tinyedge_bench import readme_tables
from tinyedge_bench.results import RESULTS, keep, kept

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
DEMO_CHECKPOINT = "edge/tinyedge/demo"

# The commands whose output the README shows, as a person in the clone's folder types them.
COMMANDS = {
    "demo": "tinyedge demo",
    "quantize": f"tinyedge quantize {DEMO_CHECKPOINT} -t Q4_K_M -o demo.gguf",
    "run": 'tinyedge run demo.gguf -p "The wolf said" -n 40 --seed 3',
    "chat": "printf 'Once upon a time there was a wolf\\nThe wolf said\\n' | tinyedge chat demo.gguf -n 40 --seed 3 --no-cache",
    "inspect": "tinyedge inspect demo.gguf",
    "bench": "tinyedge bench demo.gguf -r 5",
    "version": "tinyedge --version",
    "wheel": "tinyedge wheel --board rpi4,rpi5 -o wheels",
    "devices": "tinyedge devices",
}
_BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)


def record(names: Collection[str]) -> None:
    """Runs the commands called `names` and keeps what they print, stdout and stderr as a terminal would mix them."""
    outputs = kept("outputs")["outputs"] if set(names) < set(COMMANDS) else {}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        for part in ("edge", "README.md"):
            (Path(folder) / part).symlink_to(ROOT / part)
        for name in names:
            command = COMMANDS[name]
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                env=os.environ | {"PATH": path, "COLUMNS": "100"},
            )
            shown = re.sub(r"/tmp/[\w-]+/", "", done.stdout).replace(sys.prefix, ".venv")
            outputs[name] = {"command": command, "output": shown}
    keep("outputs", {"outputs": outputs})


def _output(name: str) -> str:
    kept_output = kept("outputs")["outputs"][name]
    return f"```console\n$ {kept_output['command']}\n{kept_output['output'].rstrip()}\n```\n"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _one_pass() -> str:
    rows = [
        "| type | file | tinyedge | llama.cpp convert + quantize | ratio | peak memory | theirs |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, label in (("one_pass-tuned", "README's build"), ("one_pass-stock", "stock build")):
        result = kept(name)
        for type_name, row in result["types"].items():
            theirs = f"{row['llama_cpp_convert_seconds']:.1f} s + {row['llama_cpp_quantize_seconds']:.1f} s"
            peaks = (
                f"{_megabytes(row['llama_cpp_convert_peak_rss_bytes'])}, {_megabytes(row['llama_cpp_quantize_peak_rss_bytes'])}"
            )
            rows.append(
                f"| {type_name}, {label} | {row['bytes']:,} bytes | {row['seconds']:.1f} s | {theirs} "
                f"| **{row['ratio']:.2f}** "
                f"| {_megabytes(row['peak_rss_bytes'])} | {peaks} |"
            )
        runs = next(iter(result["types"].values()))["runs"]
        notes.append(f"{label}: medians of {runs} runs in turn, {result['machine']['date']}")
    return "\n".join(rows) + f"\n\n{'; '.join(notes)}. {_machine(kept('one_pass-tuned'))}\n"


def _one_pass_types() -> str:
    result = kept("one_pass-types")
    rows = ["| type | file | tinyedge | cores busy | peak memory |", "|---|---|---|---|---|"]
    rows += [
        f"| {name} | {row['bytes']:,} bytes | {row['seconds']:.1f} s | {row['busy']:.0%} "
        f"| {_megabytes(row['peak_rss_bytes'])} |"
        for name, row in result["types"].items()
    ]
    runs = next(iter(result["types"].values()))["runs"]
    return "\n".join(rows) + f"\n\nMedians of {runs} runs in turn, start and end included. {_machine(result)}\n"


def _runtime() -> str:
    result = kept("runtime")
    rows = ["| what | tinyedge | beside it | ratio |", "|---|---|---|---|"]
    rows += [f"| {row['what']} | {row['ours']} | {row['beside']} | {row['ratio']} |" for row in result["rows"]]
    return "\n".join(rows) + f"\n\nMedians of {result['runs']} runs in turn. {_machine(result)}\n"


def _second_start() -> str:
    result = kept("second_start")
    rows = ["| what | without | with | ratio |", "|---|---|---|---|"]
    rows += [f"| {row['what']} | {row['without']} | {row['with']} | {row['ratio']} |" for row in result["rows"]]
    return "\n".join(rows) + f"\n\nMedians of {result['runs']} starts of each in turn. {_machine(result)}\n"


def _speculation() -> str:
    result = kept("speculation")
    rows = ["| what | plain | with `--lookup` | ratio | accepted |", "|---|---|---|---|---|"]
    rows += [
        f"| {row['what']} | {row['plain']} | {row['lookup']} | {row['ratio']} | {row['acceptance']} |" for row in result["rows"]
    ]
    return "\n".join(rows) + f"\n\nMedians of {result['runs']} runs of each in turn. {_machine(result)}\n"


def _wheels() -> str:
    result = kept("board_wheels")
    rows = [
        "| wheel | size | build | proof | on each processor: CPU variant, worst mean KL divergence, time |",
        "|---|---|---|---|---|",
    ]
    for title, row in result["wheels"].items():
        trials = "; ".join(
            f"{trial['cpu']}: {trial['variant'] + ', ' if trial['variant'] else ''}"
            f"{trial['worst_mean_kl']:.1e}, {trial['seconds']:.0f} s"
            for trial in row["trials"]
        )
        figures = f"{row['bytes'] / 1e6:.1f} MB | {row['build_seconds'] / 60:.1f} min | {row['proof_seconds']:.0f} s"
        rows.append(f"| {title} | {figures} | {trials} |")
    again = [row["again_seconds"] for row in result["wheels"].values()]
    notes = (
        "One run each; the build with an empty cache, the proof with the emulator's Debian in place. "
        f"Asked for again, each took {min(again):.0f} to {max(again):.0f} s, the proof included."
    )
    return "\n".join(rows) + f"\n\n{notes} {next(iter(result['wheels'].values()))['compiler']}, {_machine(result)}\n"


def _machine(result: dict[str, Any]) -> str:
    facts = result["machine"]
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}, {facts['versions'][1]}, {facts['date']}."


BLOCKS: dict[str, Callable[[], str]] = {
    "families": readme_tables.families,
    "inputs": readme_tables.inputs,
    "types": readme_tables.types,
    "one-pass": _one_pass,
    "one-pass-types": _one_pass_types,
    "runtime": _runtime,
    "second-start": _second_start,
    "speculation": _speculation,
    "wheels": _wheels,
    **{f"output-{name}": partial(_output, name) for name in COMMANDS},
}


def render(text: str) -> str:
    """The README with every block made anew; raises KeyError for a block of unknown name."""
    return _BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[4], text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill the README from the kept results.")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", nargs="*", choices=tuple(COMMANDS), metavar="NAME")
    options = parser.parse_args()
    if options.record is not None:
        record(options.record or tuple(COMMANDS))
    before = README.read_text()
    after = render(before)
    if options.check:
        return int(before != after)
    README.write_text(after)
    print(f"README.md filled from {RESULTS.name}/: {json.dumps(sorted(BLOCKS))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
