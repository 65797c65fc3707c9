"""pgolf: the best language model that fits a byte budget.

The library: pure computation and file formats. It never prints and never parses arguments; `stages` calls it, and
`cli` calls `stages`.
"""

__version__ = "0.1.0"
