"""`python -m cli` equals `pgolf`; torchrun starts it in every process."""

from cli.main import main

main()
