"""`python -m mrt5cli` is the `mrt5` command."""

from mrt5cli.cli import main

main()
