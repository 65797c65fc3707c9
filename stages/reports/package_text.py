"""The README.md inside a package: its files, the text it was scored on, and how to run and verify it."""

from collections.abc import Mapping

from pgolf.program.ledger import Ledger
from pgolf.store.records import TokenizeDetails
from pgolf.store.stage_directory import Stage
from stages.views import claims


def readme(model: Stage, scores: Mapping[str, Stage], ledger: Ledger) -> str:
    """Markdown; every figure and name comes from the manifests of the run. scores: evaluation stages by kind."""
    files = ", ".join(
        f"`{file.file}` {file.bytes:,} bytes{'' if file.counted else ' (not counted)'}" for file in ledger.files
    )
    rows = "".join(
        f"- {claims.SCORES[kind]}: **{stage.manifest.metrics['bits_per_byte']:.6f} bits per byte** on "
        f"{stage.manifest.metrics['tokens_scored']:,} tokens, {stage.manifest.metrics['bytes_scored']:,} bytes\n"
        for kind, stage in sorted(scores.items())
    )
    ttt = " --ttt" if "eval-ttt" in scores else ""
    return f"""# A language model in {ledger.counted_bytes:,} bytes

Made by pgolf {model.manifest.pgolf["version"]}. {files}. The cap is {ledger.cap_bytes:,} bytes.

## Scores

Bits per byte is the number of bits that each byte of the text costs when it is stored by the model's predictions.

{rows or "- no evaluation of this model was made" + chr(10)}
## Text

{val_text(model.ancestor("tokenize"))}

## Run

```
pip install -r requirements.txt
python train_gpt.py eval --val TEXT{ttt}
python train_gpt.py train --data FOLDER_OF_SHARDS --out retrained.pgz
python train_gpt.py eval --val TEXT{ttt} --model retrained.pgz
python train_gpt.py source FOLDER
```

TEXT is a folder of shards `fineweb_val_*.bin`; `pgolf tokenize` makes them of documents. `source` writes the code in
`train_gpt.py` out. With pgolf installed, `pgolf verify . --val TEXT` tests every claim in `claims.json`.
"""


def val_text(tokens: Stage) -> str:
    """Name, source and hash of the val text, as far as the tokenize stage's manifest has them."""
    details = tokens.manifest.details_as(TokenizeDetails)
    inputs = tokens.manifest.inputs
    named = {role: entry for role, entry in inputs.items() if role.startswith("val:") or "_val_" in role}
    lines = [f"- `{entry.path}`, {entry.bytes:,} bytes, SHA-256 {entry.sha256}" for _, entry in sorted(named.items())]
    if not lines:
        share = tokens.manifest.config["tokenizer"]["val_fraction"]
        lines = [f"- {details['corpus']}: a share of {share:g} of the documents, chosen by their hash"]
        lines += [f"- from `{entry.path}`, SHA-256 {entry.sha256}" for _, entry in sorted(inputs.items())]
    counts = details["val"]
    lossy = "" if details["lossless"] else " The tokenizer is lossy: some documents do not decode to themselves."
    counted = f"{counts['documents']:,} documents, {counts['bytes']:,} bytes, {counts['tokens']:,} tokens.{lossy}"
    return "\n".join(["The scores are of this text, which was not trained on:", "", *lines, "", counted])
