"""Checks of the artifact's bytes: the claimed total, the counted code, the cap under each reading."""

import statistics
from collections.abc import Iterable, Iterator

from pgolf.screen import reference, script
from pgolf.screen.claims import Check, agrees, as_number, cannot_tell, claims_by_seed, contradicts, logs_of
from pgolf.screen.folder import Record
from pgolf.screen.log import Log

_CODE_NAMES = (".py", ".c", ".cpp", ".cc", ".cu", ".sh")
_TOTALS = ("bytes_total", "artifact_bytes", "artifact_bytes_max", "artifact_size_bytes")


def artifact_bytes(record: Record) -> Iterator[Check]:
    """The claimed bytes, per seed and in all, against the totals that the logs print."""
    for seed, entry in claims_by_seed(record).items():
        value = as_number(entry.get("artifact_bytes") or entry.get("bytes_total"))
        totals = [(log, total) for log in logs_of(record, seed) for total in log.values.get("total_bytes", [])]
        if value is None or not totals:
            continue
        name, (log, total) = f"seed {seed}: artifact bytes", totals[-1]
        hits = [log.where(total) for log, total in totals if int(total.value) == int(value)]
        if hits:
            yield agrees(name, f"{value:,} as in the log", hits[-1])
        else:
            text = f"claims {value:,}{_alone(int(value), [log])}; its log has {total.value:,.0f}"
            yield contradicts(name, text, record.claims_name, log.where(total))
    claimed = next((key for key in _TOTALS if as_number(record.claims.get(key))), None)
    printed = [(log, last) for log in record.logs if (last := log.last("total_bytes"))]
    if claimed is None or not printed:
        return
    total_claimed, here = int(record.claims[claimed]), record.claim_line(claimed)
    numbers = [int(last.value) for _, last in printed]
    if total_claimed in numbers:
        yield agrees(claimed, f"{total_claimed:,} is one of the logs' totals", here)
    elif abs(total_claimed - statistics.mean(numbers)) <= 1:
        yield agrees(claimed, f"{total_claimed:,} is the mean of the logs' totals", here)
    else:
        shown = ", ".join(f"{number:,}" for number in numbers)
        text = f"claims {total_claimed:,}{_alone(total_claimed, record.logs)}; the logs have {shown}"
        yield contradicts(claimed, text, here, *(log.where(last) for log, last in printed))


def _alone(size: int, logs: Iterable[Log]) -> str:
    alone = any(int(model.value) == size for log in logs for model in log.values.get("model_bytes", []))
    return ", which is the model alone" if alone else ""


def _code_files(record: Record) -> dict[str, int]:
    """Code files of the record on disk."""
    return {name: size for name, size in record.sizes.items() if name.endswith(_CODE_NAMES) and "/" not in name}


def code_bytes(record: Record) -> Iterator[Check]:
    """The code size that the logs count against the script that is there."""
    files = _code_files(record)
    main = files.get("train_gpt.py")
    counted = [(log, code) for log in record.logs if (code := log.last("code_bytes"))]
    if main is None or not counted:
        return
    log, code = counted[-1]
    value, raw, place = int(code.value), log.last("raw_code_bytes"), (log.where(code), "train_gpt.py")
    if value in (main, sum(files.values())):
        yield agrees("code bytes", f"the {value:,} bytes counted are on disk", *place)
        return
    packed = raw is not None and int(raw.value) > value
    why = " for a packed script that is not in the folder" if packed else ""
    end = ": it is not the file that was measured" if main < value and not packed else ""
    yield contradicts("code bytes", f"counts {value:,}{why}; train_gpt.py on disk has {main:,}{end}", *place)


def cap(record: Record) -> Iterator[Check]:
    """Total bytes against the cap, for each interpretation of which code counts."""
    for key in _TOTALS:
        value = as_number(record.claims.get(key))
        if value is not None and value > reference.CAP_BYTES:
            text = f"{key} {value:,} is over the cap of {reference.CAP_BYTES:,}"
            yield contradicts("cap", text, record.claim_line(key))
    for log in record.logs:
        total = log.last("total_bytes")
        if total and total.value > reference.CAP_BYTES:
            yield contradicts("cap", f"the log's own total {total.value:,.0f} is over the cap", log.where(total))
    files = _code_files(record)
    models = [int(m.value) for log in record.logs if (m := log.last("model_bytes"))]
    source = next((text for text in record.scripts if text.name == "train_gpt.py"), None)
    if not models or source is None:
        return
    model, main = max(models), files["train_gpt.py"]
    readings = {"train_gpt.py on disk": main, **script.packed_sizes(source.text)}
    if len(files) > 1:
        readings["all code on disk"] = sum(files.values())
    text = "; ".join(f"{name} {model + size:,}" for name, size in readings.items())
    under = [model + size <= reference.CAP_BYTES for size in readings.values()]
    verdict = agrees if all(under) else cannot_tell
    yield verdict("cap, by reading", f"largest model {model:,} and {text}", "train_gpt.py")
