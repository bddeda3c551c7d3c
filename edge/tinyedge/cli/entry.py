"""The first lines of the `tinyedge` command: from here on, before the imports that take most of a short run, Ctrl-C works."""

from tinyedge.cli import signals


def main() -> None:
    """The `tinyedge` command."""
    signals.leave_at_once()
    from tinyedge.cli.app import main as run_command

    run_command()
