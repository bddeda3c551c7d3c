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

from tinyedge_bench import readme_figures, readme_tables
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
    "eval": "tinyedge eval demo.gguf --text LICENSE --base demo",
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
        for part in ("edge", "README.md", "LICENSE"):
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


BLOCKS: dict[str, Callable[[], str]] = {
    "families": readme_tables.families,
    "inputs": readme_tables.inputs,
    "types": readme_tables.types,
    "one-pass": readme_figures.one_pass,
    "one-pass-types": readme_figures.one_pass_types,
    "speed": readme_figures.speed,
    "parity": readme_figures.parity,
    "depth": readme_figures.depth,
    "batch": readme_figures.batch,
    "runtime": readme_figures.runtime,
    "memory": readme_figures.memory,
    "quality": readme_figures.quality,
    "second-start": readme_figures.second_start,
    "speculation": readme_figures.speculation,
    "wheels": readme_figures.wheels,
    **{f"output-{name}": partial(_output, name) for name in COMMANDS},
}


def render(text: str) -> str:
    """The README with every block made anew; raises KeyError for a block of unknown name."""
    return _BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[4], text)


def stale(text: str) -> list[str]:
    """The names of the README's blocks that are not what the kept results say; raises as `render`."""
    return [match[2] for match in _BLOCK.finditer(text) if match[3] != BLOCKS[match[2]]()]


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill the README from the kept results.")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", nargs="*", choices=tuple(COMMANDS), metavar="NAME")
    options = parser.parse_args()
    if options.record is not None:
        record(options.record or tuple(COMMANDS))
    before = README.read_text()
    if options.check:
        differing = stale(before)
        if differing:
            print(
                f"README.md differs from {RESULTS.name}/ in {', '.join(differing)}: run this without --check", file=sys.stderr
            )
        return int(bool(differing))
    README.write_text(render(before))
    print(f"README.md filled from {RESULTS.name}/: {json.dumps(sorted(BLOCKS))}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
