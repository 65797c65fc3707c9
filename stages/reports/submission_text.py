"""The README of a submission, section by section as the challenge's records have them; every figure from a manifest."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgolf.store.records import PackageDetails
from pgolf.store.stage_directory import Stage
from stages.reports import package_text
from stages.reports.compare import Comparison
from stages.views import repeat

if TYPE_CHECKING:
    from stages.reports.submission import Seed


def readme(
    seeds: Sequence["Seed"],
    entry: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    comparison: Comparison | None,
) -> str:
    """Markdown. `entry` is the content of submission.json."""
    spread = f" ± {entry['val_bpb_std']:.5f} (sample deviation)" if "val_bpb_std" in entry else ""
    parts = [
        f"# {entry['name']}: {entry['val_bpb']:.5f} bits per byte",
        entry["blurb"],
        f"**val_bpb {entry['val_bpb']:.8f}**{spread}, mean of {len(seeds)} seed{'s' * (len(seeds) > 1)}; at most "
        f"{entry['bytes_total']:,} bytes of script and model.",
        "## Results per seed",
        _table(
            ("seed", "steps", "ms/step", "before quantizing", "quantized", "submitted", "bytes", "train s", "eval s"),
            [_row(seed, result) for seed, result in entry["seed_results"].items()],
        ),
        "## Validation text and bytes",
        _text(seeds[0]),
        "## Technique",
        f"{entry['technique_summary']}.",
        "Every setting:",
        _table(
            ("part", "settings"),
            [(part, ", ".join(f"{key} = {value}" for key, value in items.items())) for part, items in settings.items()],
        ),
        "## Bytes",
        _table(("file", "bytes (largest of the seeds)", "counts"), _bytes(seeds)),
        "## Significance",
        "\n".join(comparison.verdict) if comparison is not None else "No comparison was made (`--against RUN...`).",
        "## Proof",
        _proofs(entry["seed_results"]),
        "## Compliance",
        _table(("condition", ""), [(name, "yes" if value else "no") for name, value in entry["compliance"].items()]),
        "From the manifests; conditions that the manifests do not answer are left out. Whether a score was causal, "
        "normalized and made before its tokens were learned from is listed when `pgolf audit` tested it.",
        "## How to run",
        "```\n" + "\n".join(_run_lines(seeds[0])) + "\n```",
        f"FOLDER_OF_SHARDS is what this command wrote: `{tokenizing(seeds[0])}`. The weights are not in this "
        "folder: `train` makes them in `model.pgz`, with its log in `model.log`, to which `eval` adds its score. "
        f"`train --seed N` trains another seed than {seeds[0].number}. The script is packed; "
        "`python train_gpt.py source FOLDER` writes its code out.",
        "## Credits",
        _table(("technique", "from"), list(entry["attribution"].items())),
        "## Included files",
        "README.md, submission.json, train_gpt.py, requirements.txt, tokenizer.model, "
        + ", ".join(f"train_seed{seed.number}.log" for seed in seeds),
        f"Made by pgolf {seeds[0].package.manifest.pgolf['version']} from the manifests of "
        + ", ".join(f"{seed.run.name} ({seed.package.manifest_sha256[:12]})" for seed in seeds)
        + f", on {entry['hardware']}, torch {entry['pytorch_version']}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run_lines(seed: "Seed") -> list[str]:
    def program(stage: Stage | None) -> str:
        processes = 1 if stage is None else stage.manifest.environment["world_size"]
        launcher = "python" if processes == 1 else f"torchrun --standalone --nproc_per_node {processes}"
        return f"{launcher} train_gpt.py"

    return [
        "pip install -r requirements.txt",
        f"{program(seed.train)} train --data FOLDER_OF_SHARDS",
        *(
            f"{program(stage)} eval --val FOLDER_OF_SHARDS{' --ttt' * (kind == 'eval-ttt')}"
            for kind, stage in sorted(seed.scores.items())
        ),
    ]


def is_registered(tokens: Stage) -> bool:
    """Whether the val tokens are shards that somebody published, and not documents of one's own."""
    return any("_val_" in role for role in tokens.manifest.inputs)


def tokenizing(seed: "Seed") -> str:
    """The command line that made the shards."""
    return repeat.typed(seed.package.ancestor("tokenize"))


def _text(seed: "Seed") -> str:
    """What was scored, how its bytes were counted, and what that allows to be said."""
    tokens = seed.package.ancestor("tokenize")
    metrics, details = seed.best.manifest.metrics, tokens.manifest.details
    counted = details.get("bytes_from") or "documents themselves: a sidecar holds the original bytes of each token"
    lossless = (
        "every document decodes to itself, byte for byte"
        if details.get("lossless")
        else "**lossy**: some documents do not decode to themselves, and their original bytes are counted all the same"
    )
    own = (
        "These are published shards, registered as they are."
        if is_registered(tokens)
        else "**This is not the challenge's FineWeb: the score does not compare with those of its records.**"
    )
    return "\n".join(
        [
            package_text.val_text(tokens),
            "",
            f"- tokens scored: {metrics['tokens_scored']:,}; bytes scored: {metrics['bytes_scored']:,}",
            f"- bytes are counted by the {counted}",
            f"- tokenizer: {details['vocab_size']:,} pieces; {lossless}",
            "",
            own,
        ]
    )


def _proofs(results: Mapping[str, Mapping[str, Any]]) -> str:
    made = {seed: result["proof"] for seed, result in results.items() if "proof" in result}
    if not made:
        return "No proof was made (`pgolf prove`)."
    rows = [
        (
            seed,
            f"{proof['claimed_bits_per_byte']:.6f}",
            f"{proof['bits_per_byte']:.6f}",
            f"{proof['bytes_scored']:,}" + (" (all)" if proof["whole_text"] else ""),
            f"{proof['code_bytes']:,}",
            f"{proof['file_bytes'] - proof['code_bytes']:,}",
            "came back" if proof["came_back"] else "did not come back",
        )
        for seed, proof in made.items()
    ]
    columns = ("seed", "claimed", "as code", "bytes of text", "bytes of code", "header and checks", "decoded")
    return (
        "The scored text was coded with the model's own predictions (`pgolf prove`), and a fresh process that had the "
        "model and not the text decoded it. Bits per byte:\n\n" + _table(columns, rows)
    )


def _row(seed: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    def shown(key: str, form: str) -> str:
        return format(result[key], form) if key in result else "-"

    quantized = "pre_ttt_val_bpb" if "pre_ttt_val_bpb" in result else "val_bpb"
    return (
        seed,
        shown("steps", ","),
        shown("step_avg_ms", ".2f"),
        shown("pre_quant_val_bpb", ".6f"),
        shown(quantized, ".6f"),
        shown("val_bpb", ".6f"),
        shown("artifact_bytes", ","),
        shown("train_time_s", ".1f"),
        shown("eval_time_s", ".1f"),
    )


def _bytes(seeds: Sequence["Seed"]) -> list[tuple[str, str, str]]:
    ledgers = [seed.package.manifest.details_as(PackageDetails)["ledger"] for seed in seeds]
    largest = max(ledgers, key=lambda ledger: int(ledger["counted_bytes"]))
    rows = [(row["file"], f"{row['bytes']:,}", "yes" if row["counted"] else "no") for row in largest["files"]]
    return [*rows, ("total counted", f"{largest['counted_bytes']:,}", f"cap {largest['cap_bytes']:,}")]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])
