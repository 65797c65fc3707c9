"""Packages whose files, ledger and claims agree with each other, whatever they say."""

import json
from pathlib import Path

from pgolf.store.manifest import hash_file


def claims_again(folder: Path, change) -> None:
    """Change the claims in every place that holds them, so that the folder agrees with itself."""
    claimed = json.loads((folder / "claims.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    change(claimed)
    for name in claimed["files"]:
        found = hash_file(folder / name)
        claimed["files"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    (folder / "claims.json").write_text(json.dumps(claimed))
    manifest["details"]["claims"] = claimed
    for name in manifest["outputs"]:
        found = hash_file(folder / name)
        manifest["outputs"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    for row in manifest["details"]["ledger"]["files"]:
        row["bytes"] = (folder / row["file"]).stat().st_size
    files = {row["file"]: row["bytes"] for row in manifest["details"]["ledger"]["files"]}
    total = files["model.pgz"] + files["train_gpt.py"]
    manifest["details"]["ledger"] |= {"counted_bytes": total, "total_bytes": total}
    manifest["metrics"] |= {
        "model_bytes": files["model.pgz"],
        "code_bytes": files["train_gpt.py"],
        "total_bytes": total,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
