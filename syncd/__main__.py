"""`python -m syncd`: the same as the command `syncd`."""

from syncd.cli import main

main()
