"""`python -m tinyedge` is the `tinyedge` command."""

from tinyedge.cli.entry import main

main()
