"""`python -m tinyedge_bench.harness`: the command line of lm-evaluation-harness, with the model `tinyedge` in it."""

from __future__ import annotations

import sys

from tinyedge.errors import TinyEdgeError
from tinyedge_bench.harness import require_harness


def main() -> int:
    """The exit code: that of a TinyEdgeError, whose sentence goes to stderr; lm_eval leaves with its own."""
    try:
        require_harness()
        from lm_eval.__main__ import cli_evaluate

        import tinyedge_bench.harness.language_model  # noqa: F401  (registers the model)

        cli_evaluate()
    except TinyEdgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
