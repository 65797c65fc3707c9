"""Screen many folders of records: contradictions per folder, as a table in Markdown.

    python benchmarks/screen/records.py RECORDS/track_10min_16mb/* > table.md

The records are those of the challenge's repository; none is part of this project.
"""

import sys
from collections import Counter
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.screen.checks import screen_folder
from pgolf.screen.claims import AGREES, CANNOT_TELL, CONTRADICTS

print("| record | agree | cannot tell | contradict | contradictions |\n|---|---|---|---|---|")
for folder in map(Path, sys.argv[1:]):
    try:
        checks = screen_folder(folder)
    except PgolfError as error:
        print(f"| {folder.name} | | | | {error} |")
        continue
    counts = Counter(check.verdict for check in checks)
    found = "; ".join(f"{check.name}: {check.finding}" for check in checks if check.verdict == CONTRADICTS)
    print(f"| {folder.name} | {counts[AGREES]} | {counts[CANNOT_TELL]} | {counts[CONTRADICTS]} | {found} |")
