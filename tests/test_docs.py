"""The documents name files, modules, commands and settings that exist."""

import re
from pathlib import Path

import pytest
import typer

from cli.app import app
from pgolf.config import Config, load, to_dict
from pgolf.data import hub

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"))
)
FILE_ENDINGS = ("py", "pgz", "json", "md", "log")  # `package.json` is a file and no setting
TOP = "pgolf|stages|cli|tests|benchmarks|docs|artifacts"


def prose(document: str) -> str:
    """The text of a document, without blocks of code."""
    text = (ROOT / document).read_text("utf-8")
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def missing_files(text: str, folders: tuple[Path, ...] = (ROOT,)) -> list[str]:
    """Paths in backticks that begin with one of our folders, or end like a source, and are in none of `folders`."""
    named = re.findall(rf"`((?:{TOP})/[\w./-]+|[\w./-]+/[\w-]+\.(?:py|md|toml))[` ]", text)
    ours = [name for name in named if not re.match(r"artifacts/|/|\.\.", name) and "NAME" not in name]
    return [name for name in ours if not any((folder / name).exists() for folder in folders)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    folders = (ROOT, ROOT / "benchmarks", (ROOT / document).parent)
    assert missing_files(prose(document), folders) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(document))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / document).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_commands_and_settings_exist(document: str) -> None:
    text = prose(document)
    modules = re.findall(r"`(pgolf(?:\.\w+)+)`", text)
    assert [name for name in modules if not exists(name)] == []
    commands = {command.name for command in app.registered_commands}
    assert set(re.findall(r"`pgolf ([a-z][\w-]*)", text)) <= commands
    settings = to_dict(Config())
    named = re.findall(r"`(model|train|optim|average|quantize|evaluate|ttt|package)\.([a-z]\w*)(?:=[^`]*)?`", text)
    assert [(section, key) for section, key in named if key not in settings[section] and key not in FILE_ENDINGS] == []


def test_commands_for_the_whole_challenge_parse() -> None:
    """They train for minutes on 8 GPUs, so nothing here runs them; click reads them without calling the command."""
    program = typer.main.get_command(app)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.split() for kind, block in blocks if not kind for line in block.splitlines() if line[:6] == "pgolf "]
    parsed = {}
    for _, name, *arguments in lines:
        with program.make_context("pgolf", [name], resilient_parsing=True) as parent:
            parsed[name] = program.commands[name].make_context(name, arguments, parent=parent).params  # type: ignore[attr-defined]
    assert {"tokenize", "train", "ema-finalize", "quantize", "eval", "package"} <= set(parsed)
    fetched = parsed["tokenize"]
    assert fetched["hub"] in hub.KNOWN
    assert fetched["train_shards"] >= hub.TRAIN_SHARDS
    (trained,) = [arguments for _, name, *arguments in lines if name == "train" and "--preset" in arguments]
    preset = trained[trained.index("--preset") + 1]
    assert fetched["variant"] == f"sp{load(preset).tokenizer.vocab_size}"


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    inside = path.parent.with_suffix(".py")
    return (
        inside.is_file()
        and re.search(rf"^(def|class) {path.name}\b|^{path.name}\b", inside.read_text(), re.M) is not None
    )


def test_a_missing_file_is_found() -> None:
    assert missing_files("see `pgolf/nowhere.py` and `pgolf/errors.py`") == ["pgolf/nowhere.py"]
