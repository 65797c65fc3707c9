"""The budget as a picture: bytes by role against the cap, and each tensor's rate against its distortion."""

from pathlib import Path

from stages.reports.budget import Budget

_COLORS = ("#1f4e79", "#3a7ca5", "#81b29a", "#e0a458", "#c8553d", "#7d5ba6", "#8d99ae")


def draw(budget: Budget, picture: Path) -> None:
    """Write the PNG. The right half needs the rates and errors that a quantize stage keeps; without, it is left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = [(line.role, line.bytes) for line in budget.roles]
    parts += [("header", budget.header_bytes), *budget.other_bytes.items()]
    measured = [row for row in budget.tensors if _error(row) > 0]
    figure, panels = plt.subplots(1, 2 if measured else 1, figsize=(11 if measured else 7, 4.5), layout="constrained")
    bars = panels[0] if measured else panels
    names = [name for name, _ in parts]
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}
    bars.barh(names, [size / 1000 for _, size in parts], color=[colors[name] for name in names])
    for index, (_, size) in enumerate(parts):
        bars.text(size / 1000, index, f" {100 * size / budget.total_bytes:.1f}%", va="center", fontsize=9)
    bars.invert_yaxis()
    bars.margins(x=0.12)
    bars.set_xlabel("kB (1000 bytes)")
    bars.set_title(f"{budget.total_bytes:,} bytes of {budget.cap_bytes:,}, coder: {budget.coder}", fontsize=10)
    if measured:
        rates = panels[1]
        for role in dict.fromkeys(row["role"] for row in measured):
            rows = [row for row in measured if row["role"] == role]
            sizes = [12 + 20 * (row["weights"] / max(item["weights"] for item in measured)) for row in rows]
            rates.scatter(
                [row["bits"] for row in rows],
                [_error(row) for row in rows],
                s=sizes,
                label=role,
                color=colors.get(role),
            )
        rates.set_yscale("log")
        rates.set_xlabel("entropy of the symbols, bits per weight")
        rates.set_ylabel("relative error of the output (else of the weights)")
        rates.set_title("rate against distortion, one point a tensor", fontsize=10)
        rates.grid(alpha=0.3, which="both")
        rates.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _error(row: object) -> float:
    if not isinstance(row, dict) or "bits" not in row:
        return 0.0
    return float(row.get("output_error") or row.get("relative_error") or 0.0)
