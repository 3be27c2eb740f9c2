"""`python -m lingflash`: the `ling` command where the package is a folder and not installed."""

from lingflash.cli import main

main()
