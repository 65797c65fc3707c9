"""`screen` on a small record in the published form, clean and with one fault at a time."""

import base64
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgolf.errors import PgolfError
from pgolf.screen.checks import screen_folder
from pgolf.screen.claims import AGREES, CONTRADICTS, Check
from pgolf.screen.log import parse_log

SCRIPT = "import torch\n\nprint('training')\n"
MODEL = 15_900_000
LOSSES = {"42": ("2.79517119", "1.08209788"), "0": ("2.79788378", "1.08314800"), "7": ("2.79785185", "1.08313564")}


def log_of(seed: str, **changes: Any) -> str:
    loss, bits = LOSSES[seed]
    values = {
        "loss": loss,
        "bits": bits,
        "tokens": 40_540_160,
        "documents": 50_000,
        "milliseconds": 588_035,
        "eval": 293_430,
        "code": len(SCRIPT),
        "total": MODEL + len(SCRIPT),
        "seed": seed,
    } | changes
    return (
        "  seed: {seed}\ntrain_shards: 80\nval_tokens: {tokens}\nttt_phased: total_docs:{documents} prefix_docs:0\n"
        "0/20000 val_loss: 9.0072 val_bpb: 3.4870\n"
        "stopping_early: wallclock_cap train_time: {milliseconds}ms step: 5082/20000\n"
        "diagnostic pre-quantization post-ema val_loss:2.81173824 val_bpb:1.08851149 eval_time:5580ms\n"
        "Code size: {code} bytes\nSerialized model quantized+brotli: 15900000 bytes\n"
        "Total submission size quantized+brotli: {total} bytes\n"
        "legal_ttt_exact val_loss:{loss} val_bpb:{bits} eval_time:{eval}ms\n"
    ).format(**values)


def write_record(folder: Path, claims: dict[str, Any] | None = None, **changes: Any) -> Path:
    mean = sum(float(bits) for _, bits in LOSSES.values()) / len(LOSSES)
    total = MODEL + len(SCRIPT)
    entry = {
        "val_bpb": round(mean, 8),
        "val_bpb_std": 0.0006,
        "date": "2026-04-06",
        "bytes_total": total,
        "seed_results": {
            seed: {"val_loss": float(loss), "val_bpb": float(bits), "artifact_bytes": total}
            for seed, (loss, bits) in LOSSES.items()
        },
    }
    (folder / "submission.json").write_text(json.dumps(entry | (claims or {}), indent=1), "utf-8")
    (folder / "README.md").write_text(f"# A record\nScore {mean:.5f}\n", "utf-8")
    (folder / "train_gpt.py").write_text(SCRIPT, "utf-8")
    for seed in LOSSES:
        (folder / f"train_seed{seed}.log").write_text(log_of(seed, **changes), "utf-8")
    return folder


def contradictions(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in screen_folder(folder) if check.verdict == CONTRADICTS}


def test_a_clean_record_has_no_contradiction(tmp_path: Path) -> None:
    checks = screen_folder(write_record(tmp_path))
    assert [check for check in checks if check.verdict == CONTRADICTS] == []
    agreeing = {check.name for check in checks if check.verdict == AGREES}
    assert {"headline score", "implied bytes", "seed 42: val_bpb", "seed 0: artifact bytes", "code bytes"} <= agreeing
    assert {
        "documents",
        "time of training",
        "time of evaluation",
        "deviation over seeds",
        "README",
        "seeds",
    } <= agreeing
    scored = next(check for check in checks if check.name == "seed 42: val_bpb")
    assert scored.evidence == ("train_seed42.log:11",)


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"bits": "0.91890000"}, "implied bytes", "counted twice"),  # 1.0821 over 1.1777: #1734, #1791
        ({"total": 16_040_000}, "cap", "over the cap"),
        ({"code": 80_055}, "code bytes", "80,055"),
        ({"documents": 10_000}, "documents", "10,000 documents"),
        ({"milliseconds": 601_153}, "time of training", "601.153"),
        ({"eval": 688_000}, "time of evaluation", "688"),
        ({"tokens": 9_662_464}, "implied bytes", "a part of it"),  # #1854: the first 10,000 documents
    ],
)
def test_each_fault_in_the_logs_is_found(tmp_path: Path, changes: dict[str, Any], name: str, words: str) -> None:
    found = contradictions(write_record(tmp_path, **changes))
    assert words in found[name].finding


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"val_bpb": 1.0701}, "headline score"),
        ({"val_bpb_std": 0.0002}, "deviation over seeds"),
        ({"bytes_total": MODEL}, "bytes_total"),
        ({"bytes_total": 16_638_468}, "cap"),
        ({"seed_results": {"42": {"val_bpb": 1.04295382, "artifact_bytes": 15_985_754}}}, "seed 42: val_bpb"),
    ],
)
def test_each_false_claim_is_found(tmp_path: Path, claims: dict[str, Any], name: str) -> None:
    assert name in contradictions(write_record(tmp_path, claims))


def test_operators_counted_as_text_are_named(tmp_path: Path) -> None:
    # figures of #2071: 164,594,398 bytes where the split has 151.08 million
    write_record(tmp_path, tokens=47_851_520, loss="2.40073153", bits="1.00692894")
    found = contradictions(tmp_path)["implied bytes"]
    assert "CaseOps operators" in found.finding
    assert "1.0970" in found.finding


def test_bits_per_byte_in_the_field_of_the_loss_are_found(tmp_path: Path) -> None:
    folder = write_record(tmp_path)
    claims = json.loads((folder / "submission.json").read_text("utf-8"))
    mean = claims.pop("val_bpb")
    (folder / "submission.json").write_text(json.dumps(claims | {"val_loss": round(mean, 5)}), "utf-8")
    assert "bits per byte" in contradictions(folder)["headline score"].finding


TABLE = """
YES=True
def luts(tok, size, device):
    sizes, spaces, edges = zeros(size), zeros(size), ones(size)
    for n in range(size):
        if tok.is_control(n) or tok.is_unknown(n): continue
        edges[n] = not YES
        if tok.IsByte(n):
            sizes[n] = 1
        else:
            text = tok.IdToPiece(n)
            if text[:1] == "\u2581":
                spaces[n] = YES; text = text[1:]
            sizes[n] = len(text.encode())
    return torch.tensor(sizes, device=device), spaces, edges
def newer(a):
    return f"{a["b"]}"
total += (vals.spaces[y] & ~vals.edges[x]).sum()
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        ("len(text.encode())", "len(text.encode()) + spaces_here", ""),  # not interpreted: nothing is said
        ("spaces[n] = YES; text = text[1:]", "spaces[n] = YES", "'\u2581the' 7 for 4"),
        ("text = text[1:]", 'text = text.replace("\u2581", " ")', "'\u2581the' 5 for 4"),  # #1734: counted twice
        ("text = text[1:]", 'text = text.lstrip("\\u2581")', None),
        (".IsByte(n)", ".is_unused(n)", "'<0x0A>' 6 for 1"),
        ("tok.is_control(n) or", "not YES or", "'<s>' 3 for 0"),
        ("len(text.encode())", "len(text)", "'\u00e9' 1 for 2"),
        ("vals.spaces[y] & ~vals.edges[x]", "0", "'\u2581the' 3 for 4"),
    ],
)
def test_the_byte_table_of_the_script_is_read(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    folder = write_record(tmp_path)
    (folder / "data.py").write_text(TABLE.replace(old, new) if old else TABLE, "utf-8")
    found = [check for check in screen_folder(folder) if check.name == "byte table of the script"]
    assert [check.verdict for check in found] == ([] if words == "" else [CONTRADICTS if words else AGREES])
    assert all((words or "right bytes of 6") in check.finding for check in found)
    assert all(check.evidence == ("data.py:3",) for check in found)


def test_a_score_printed_in_another_form_is_no_contradiction_unless_it_is_of_a_part(tmp_path: Path) -> None:
    folder = write_record(tmp_path, {"val_bpb": 0.901534})
    with (folder / "train_seed42.log").open("a") as log:
        log.write("ttt_chunk [474/474] bpb=0.901534 time=295.6s\n")  # as #1001
    found = {check.name: check for check in screen_folder(folder)}["headline score"]
    assert (found.verdict, found.evidence) == ("cannot tell", ("train_seed42.log:12",))
    with (folder / "train_seed0.log").open("a") as log:
        log.write("ppm_mix bytes=27048621 mix_bpb=0.901534 ppm_only=2.076814\n")  # #1881: of 8M tokens
    assert "27,048,621 bytes; the split has 151,080,500" in contradictions(folder)["headline score"].finding


def test_seeds_are_found_by_their_keys_and_late_runs_of_unnamed_seeds_count(tmp_path: Path) -> None:
    folder = write_record(
        tmp_path, {"seed_results": None, "val_bpb_std": None, "val_bpb_seeds": {"seed_42": 1.082, "mean": 9}}
    )
    assert "seed 42: val_bpb" in {check.name for check in screen_folder(folder) if check.verdict == AGREES}
    write_record(tmp_path, {"seed_results": None}, eval=607_537)  # #798 names no seeds
    assert "607.537" in contradictions(folder)["time of evaluation"].finding


def test_a_readme_of_another_state_is_shown(tmp_path: Path) -> None:
    folder = write_record(tmp_path)
    (folder / "README.md").write_text("first on `val_tokens`: 36,562,944\n", "utf-8")
    shown = next(check for check in screen_folder(folder) if check.name == "val tokens in README")
    assert "36,562,944 val tokens, the logs here 40,540,160" in shown.finding


def test_a_packed_script_is_read_and_not_run(tmp_path: Path) -> None:
    inner = "import os\n" * 300 + "eval_slot_lr = 0.1\nraise SystemExit('was run')\n"
    noise = "".join(f"# {number * 7919 % 10_007}\n" for number in range(2_000))
    packed = base64.b85encode(lzma.compress((inner + noise).encode())).decode()
    source = f"import base64, lzma\nexec(lzma.decompress(base64.b85decode({packed!r})))\n"
    folder = write_record(tmp_path)
    (folder / "train_gpt.py").write_text(source, "utf-8")
    checks = screen_folder(folder)
    slot = [check for check in checks if "SLOT" in check.finding]
    assert slot[0].evidence == ("train_gpt.py (unpacked):301",)
    assert slot[0].verdict != CONTRADICTS


@pytest.mark.parametrize("make", [lambda f: f / "none", lambda f: f, lambda f: _broken(f)])
def test_folders_without_a_record_are_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(PgolfError, match=r"record|folder|JSON"):
        screen_folder(make(tmp_path))


def _broken(folder: Path) -> Path:
    (folder / "submission.json").write_text('{"val_bpb": 1.0', "utf-8")
    return folder


def test_source_in_a_log_holds_no_figures() -> None:
    source = 'log(f"stopping_early: train_time: {ms:.0f}ms step: {step}/{n}")\nval_loss:{x:.4f} val_bpb:{y:.4f}'
    assert parse_log("train.log", source).values == {}
    assert parse_log("train.log", source).scores == []
