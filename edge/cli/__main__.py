"""`python -m edge.cli`: the command `maskline`, as this interpreter has it."""

from edge.cli import main

main()
