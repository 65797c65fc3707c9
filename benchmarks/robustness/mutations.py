"""Read thousands of damaged files of every kind; none may end in anything but its own meaning or one line of error.

    python benchmarks/robustness/mutations.py [--per-kind 600] [--kind NAME] [--first 0]

tests/helpers/mutation.py makes the files and defines faults; the suite reads a sample of them. The table
goes to results/mutations.json. Exits 1 when there is a fault; each is reported with the seed that reproduces it.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "helpers"))

import mutation  # noqa: E402  (the tests' folder is not a package)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-kind", type=int, default=600)
    parser.add_argument("--kind", action="append", choices=list(mutation.KINDS))
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    clock = time.monotonic()
    cases = []
    for kind in options.kind or mutation.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found = list(mutation.run(kind, range(options.first, options.first + options.per_kind), Path(folder)))
        cases += found
        for case in found:
            if case.outcome in mutation.FAULTS:
                print(f"{case.kind} {case.number}: {case.outcome}: {case.detail}")
        print(f"{kind}: {dict(mutation.counts(found)[kind])}", flush=True)
    results = HERE.parent / "results" / "mutations.json"
    kept = json.loads(results.read_text("utf-8"))["kinds"] if options.kind and results.exists() else {}
    table = kept | {
        kind: {name: found[name] for name in mutation.OUTCOMES} for kind, found in mutation.counts(cases).items()
    }
    faults = sum(case.outcome in mutation.FAULTS for case in cases)
    total = sum(sum(row.values()) for row in table.values())
    bad = sum(row[name] for row in table.values() for name in mutation.FAULTS)
    summary = {"mutations": total, "faults": bad, "kinds": table}
    results.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{len(cases)} mutations, {faults} faults, {time.monotonic() - clock:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
