"""The page's frame, its style sheet, and tables. Every text that comes in is escaped here."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Two columns of figures on a wide screen, one on a phone; colors follow the reader's light or dark setting.
STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf7;--card:#fff;--ink:#1d2127;--soft:#646b76;--line:#e3e1da;--a:#2463a6;
--b:#c0561b;--c:#2f7f57;--d:#8a5aa8;--e:#b08a1e;--f:#5b6b7c;--good:#1f7a4a;--bad:#b3261e;--shade:#f2f0ea}
@media(prefers-color-scheme:dark){:root{--bg:#15171b;--card:#1d2025;--ink:#e7e6e2;--soft:#9aa1ac;--line:#343840;
--a:#6aa9ec;--b:#eb935c;--c:#6cc095;--d:#c39be0;--e:#dcb95a;--f:#9db0c4;--good:#6fcf9a;--bad:#f28b82;--shade:#24282e}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:860px;margin:0 auto;padding:1.2rem 1rem 3rem}
header p,.soft,figcaption,caption{color:var(--soft)}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0 .1rem}
h2{font-size:1.15rem;margin:0 0 .5rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1rem 1.1rem;margin:1rem 0}
section>p{margin:.4rem 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1rem 0}
.fact{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.7rem .9rem}
.fact b{display:block;font-size:1.55rem;line-height:1.25;font-variant-numeric:tabular-nums}
.fact>span{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.34rem .7rem .34rem 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child,.words td,.words th{text-align:left}
th{font-weight:600;color:var(--soft);font-size:.82rem}
tr:last-child td{border-bottom:0}
td:not(:first-child){white-space:nowrap}.words td:last-child{white-space:normal;overflow-wrap:anywhere}
td:first-child{overflow-wrap:anywhere;min-width:6.4rem}td small{display:block;color:var(--soft)}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
figure{margin:.4rem 0 1rem}
svg{display:block;width:100%;max-width:540px;height:auto;margin:0 auto;overflow:visible}
svg text{fill:var(--soft);font-size:11px;font-family:inherit}
svg .strong{fill:var(--ink)}
svg .grid{stroke:var(--line);stroke-width:1}
figcaption{font-size:.85rem;text-align:center;margin-top:.3rem}
ol.chain{list-style:none;margin:0;padding:0 0 0 1.1rem;border-left:2px solid var(--line)}
ol.chain li{position:relative;padding:0 0 .8rem}
ol.chain li::before{content:"";position:absolute;left:-1.52rem;top:.45rem;width:.72rem;height:.72rem;border-radius:50%;
background:var(--a);border:2px solid var(--card)}
ol.chain b{margin-right:.5rem}
code,pre{font:.83em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{overflow-x:auto;background:var(--shade);padding:.7rem;border-radius:8px}
code{background:var(--shade);padding:.1em .35em;border-radius:5px;overflow-wrap:anywhere}
details summary{cursor:pointer;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;justify-content:center;font-size:.85rem;color:var(--soft)}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:3px;margin-right:.4em;vertical-align:-.05em}
@media print{body{background:#fff}section,.fact{break-inside:avoid}}
@media(max-width:480px){main{padding:.8rem .6rem 2rem}section{padding:.8rem .75rem}th,td{padding-right:.5rem}}
"""
COLORS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)", "var(--f)")


@dataclass(frozen=True)
class Markup:
    """Text that is already HTML; all other text is escaped on insertion."""

    text: str


Cell = str | Markup


def text(value: Cell) -> str:
    return value.text if isinstance(value, Markup) else escape(value)


def page(title: str, subtitle: str, parts: Sequence[Markup]) -> str:
    body = "\n".join(part.text for part in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n{body}\n</main></body></html>\n"
    )


def section(title: str, *parts: Markup) -> Markup:
    return Markup(f"<section><h2>{escape(title)}</h2>{''.join(part.text for part in parts)}</section>")


def paragraph(value: Cell, soft: bool = False) -> Markup:
    return Markup(f"<p{' class=soft' if soft else ''}>{text(value)}</p>")


def facts(items: Sequence[tuple[str, Cell]]) -> Markup:
    """The headline figures: (label, figure)."""
    cards = "".join(f'<div class="fact"><b>{text(value)}</b><span>{escape(name)}</span></div>' for name, value in items)
    return Markup(f'<div class="facts">{cards}</div>')


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], words: bool = False) -> Markup:
    """First column left, the others right; with `words` all left."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return Markup(f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def verdict(value: str) -> Markup:
    kind = {"passed": "good", "failed": "bad"}.get(value, "soft")
    return Markup(f'<span class="{kind}">{escape(value)}</span>')


def chain(items: Sequence[tuple[str, Cell]]) -> Markup:
    """A timeline: (name, description)."""
    entries = "".join(f"<li><b>{escape(name)}</b>{text(value)}</li>" for name, value in items)
    return Markup(f'<ol class="chain">{entries}</ol>')


def code(value: str) -> Markup:
    return Markup(f"<code>{escape(value)}</code>")


def folded(summary: str, content: str) -> Markup:
    return Markup(f"<details><summary>{escape(summary)}</summary><pre>{escape(content)}</pre></details>")


def legend(names: Sequence[str]) -> Markup:
    items = zip(names, COLORS, strict=False)
    entries = "".join(f'<span><i style="background:{color}"></i>{escape(name)}</span>' for name, color in items)
    return Markup(f'<div class="legend">{entries}</div>')


def figure(drawing: str, caption: str, names: Sequence[str] = ()) -> Markup:
    below = legend(names).text if len(names) > 1 else ""
    return Markup(f"<figure>{drawing}{below}<figcaption>{escape(caption)}</figcaption></figure>")


def noted(value: str, note: str) -> Markup:
    """A cell with a smaller line under it."""
    return Markup(f"{escape(value)}<small>{escape(note)}</small>")


def join(*parts: Cell) -> Markup:
    return Markup("".join(text(part) for part in parts))
