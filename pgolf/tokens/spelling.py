"""What pieces have in common by their spelling: 0 or 1 for every piece and property.

The properties: begins with a space or not; its length; nothing but letters; its first letter, apart for those with a
space before it; its last letter. Endings tell parts of speech (`-ed`, `-ly`, `-s`) and a space a new word, which all
pieces together show sooner than one that has come a few hundred times.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 4  # pieces that have a property, or it is left out
LONGEST = 8  # letters told apart


def properties(pieces: Sequence[bytes]) -> Tensor:
    """(len(pieces), properties) float32; pieces: the text of each, empty for control tokens."""
    found = [_of(piece.decode(errors="replace")) for piece in pieces]
    counts = Counter(name for names in found for name in names)
    columns = {name: column for column, name in enumerate(sorted(n for n, count in counts.items() if count >= LEAST))}
    made = torch.zeros(len(pieces), len(columns))
    for row, names in enumerate(found):
        made[row, [columns[name] for name in names if name in columns]] = 1
    return made


def _of(text: str) -> set[str]:
    if not text:
        return {"control"}
    start = text.startswith(" ")
    letters = text[1:] if start else text
    names = {f"space {start}", f"length {min(len(letters), LONGEST)}", f"letters {letters.isalpha()}"}
    return names | {f"first {start} {letters[:1]}", f"last {letters[-1:]}"}
