"""`python -m tinyedge` is the `tinyedge` command."""

from tinyedge.cli.app import main

main()
