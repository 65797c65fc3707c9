"""`python -m cli`: the same as `pgolf`; what torchrun starts in every process."""

from cli.main import main

main()
