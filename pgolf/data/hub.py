"""The challenge's published shards: their layout on the Hugging Face hub, fetched with checks.

The layout (openai/parameter-golf, `cached_challenge_fineweb.py`): a dataset repository with `manifest.json`,
`datasets/fineweb10B_<variant>/fineweb_{train,val}_*.bin` and `tokenizers/`, all under one more folder `datasets` on the
hub and without it in a local copy. The hub's client resumes broken downloads; what the challenge's own script lacks is
done here: every file's size and, where the hub knows it, SHA-256 are checked, and so is every shard's header. A folder
or fsspec URL with the same layout (a mirror) serves in place of a repository.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pgolf.data.files import file_system, reading
from pgolf.errors import PgolfError
from pgolf.store import manifest as manifests
from pgolf.tokens import shards

KNOWN = ("willdepueoai/parameter-golf", "kevclark/parameter-golf", "romeerp/parameter-golf-caseops-v1")
"""Dataset repositories that records name: the default of the challenge's script, one with sp4096 and sp8192, and one
with CaseOps."""
TRAIN_SHARDS = 80  # default of the challenge's own script
_PREFIXES = ("datasets/", "")


@dataclass(frozen=True)
class RemoteFile:
    path: str  # in the repository
    bytes: int
    sha256: str | None

    def __post_init__(self) -> None:
        """Raises PgolfError for a path that would lead out of the folder that files are fetched into."""
        if self.path.startswith("/") or ".." in self.path.replace("\\", "/").split("/"):
            raise PgolfError(f"the repository names a file {self.path!r}, outside of itself; it is not read")


@dataclass(frozen=True)
class Fetched:
    """A file that has been brought here and checked."""

    name: str
    local: Path
    url: str
    content: manifests.Output


class Repository(Protocol):
    """A source of published files: the hub, or a folder with the same layout."""

    name: str
    remote: bool
    """Fetching a file takes a download."""

    def files(self) -> Mapping[str, RemoteFile]:
        """Every file by its path."""

    def fetch(self, file: RemoteFile, again: bool) -> Path:
        """A local copy; `again` fetches it even if it exists."""

    def url(self, path: str) -> str:
        """Name of a file of this source in manifests."""


@dataclass(frozen=True)
class Selection:
    """The files to fetch of a variant: all val shards, a number of train shards, and their tokenizer."""

    variant: str
    train: tuple[RemoteFile, ...]
    val: tuple[RemoteFile, ...]
    val_bytes: tuple[RemoteFile, ...]
    tokenizer: RemoteFile
    train_available: int

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (self.tokenizer, *self.val, *self.val_bytes, *self.train)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def open_repository(name: str) -> Repository:
    """The hub's dataset repository `owner/name`, or a folder or fsspec URL with its layout."""
    if "://" in name or Path(name).is_dir():
        return _Mirror(name)
    return _HuggingFace(name)


def select(repository: Repository, variant: str | None, vocabulary: int | None, train_shards: int | None) -> Selection:
    """Choose the files of a variant such as `sp1024`.

    variant: its name; None: the only variant with `vocabulary` pieces or, if that is None too, the only variant.
    train_shards: how many; None: those that the challenge's own script takes, as far as they are published.
    Raises PgolfError when no variant or several fit (naming all), or when there are fewer train shards than asked for.
    """
    files = repository.files()
    datasets: dict[str, list[RemoteFile]] = {}
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        if fnmatch.fnmatch(name, "fineweb_*_*.bin") or name.startswith("val_bytes_"):
            datasets.setdefault(folder, []).append(file)
    variants = {_variant_of(folder): folder for folder in sorted(datasets)}
    if not variants:
        raise PgolfError(f"{repository.name} holds no shards in the challenge's layout (datasets/fineweb10B_*/)")
    fitting = [variant] if variant else [name for name in variants if vocabulary in (None, _pieces(name))]
    if len(fitting) != 1 or fitting[0] not in variants:
        if variant:
            fault = f"has no variant {variant}"
        else:
            fault = f"has {len(fitting)} variants" + (f" of {vocabulary:,} pieces" if vocabulary else "")
        raise PgolfError(
            f"{repository.name} {fault}; choose --variant from {', '.join(variants)}, or another repository (records "
            f"name {', '.join(KNOWN)})"
        )
    (chosen,) = fitting
    found = sorted(datasets[variants[chosen]], key=lambda file: file.path)
    train = [file for file in found if "/fineweb_train_" in file.path]
    val_bytes = [file for file in found if "val_bytes_" in file.path.rpartition("/")[2]]
    val = [file for file in found if "/fineweb_val_" in file.path and file not in val_bytes]
    if not val or not train:
        raise PgolfError(f"{repository.name}: {variants[chosen]} has {len(train)} train and {len(val)} val shards")
    if train_shards is not None and train_shards > len(train):
        raise PgolfError(
            f"--train-shards {train_shards}: {repository.name} has {len(train)} of variant {chosen}; ask for fewer"
        )
    return Selection(
        variant=chosen,
        train=tuple(train[: TRAIN_SHARDS if train_shards is None else train_shards]),
        val=tuple(val),
        val_bytes=tuple(val_bytes),
        tokenizer=_tokenizer(repository, files, chosen, variants[chosen]),
        train_available=len(train),
    )


def fetch(
    repository: Repository, files: tuple[RemoteFile, ...], on_bytes: Callable[[int, str], None]
) -> dict[str, Fetched]:
    """Bring files here and check them; a bad copy is fetched once more. By path in the repository.

    on_bytes: called with the bytes done so far and the name of the file under way.
    Raises PgolfError when a file cannot be fetched or does not match the repository's size or hash.
    """
    done = 0
    found = {}
    for file in files:
        name = file.path.rpartition("/")[2]
        on_bytes(done, name)
        for again in (False, True):
            local = repository.fetch(file, again)
            content = manifests.hash_file(local)
            fault = _fault(file, local, content)
            if not fault:
                break
        else:
            raise PgolfError(f"{repository.url(file.path)}: {fault}; fetched twice, so the published file is bad")
        found[file.path] = Fetched(name, local, repository.url(file.path), content)
        done += file.bytes
    return found


def _fault(file: RemoteFile, local: Path, content: manifests.Output) -> str:
    if content.bytes != file.bytes:
        return f"expected {file.bytes} bytes, found {content.bytes}"
    if file.sha256 not in (None, content.sha256):
        return f"expected SHA-256 {str(file.sha256)[:12]}…, found {content.sha256[:12]}…"
    if file.path.endswith(".bin"):
        try:
            shards.shard_tokens(local)
        except PgolfError as error:
            return str(error)
    return ""


def _variant_of(folder: str) -> str:
    return folder.rpartition("/")[2].removeprefix("fineweb10B_")


def _pieces(variant: str) -> int | None:
    """Vocabulary size in a name such as `sp1024`, `byte260` or `sp8192_lossless_caps_caseops_v1`."""
    found = re.match(r"[a-z]+([0-9]+)", variant)
    return int(found[1]) if found else None


def _tokenizer(repository: Repository, files: Mapping[str, RemoteFile], variant: str, folder: str) -> RemoteFile:
    """The model file that the repository's manifest names for a dataset; without a manifest, the one of that size."""
    prefix = next(prefix for prefix in _PREFIXES if folder.startswith(f"{prefix}datasets/") or not prefix)
    named = ""
    if f"{prefix}manifest.json" in files:
        local = repository.fetch(files[f"{prefix}manifest.json"], again=False)
        try:
            manifest = json.loads(local.read_text("utf-8"))
            dataset = next(item for item in manifest["datasets"] if item["name"] == f"fineweb10B_{variant}")
            owner = next(item for item in manifest["tokenizers"] if item["name"] == dataset["tokenizer_name"])
            named = prefix + str(owner.get("model_path") or owner.get("path"))
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise PgolfError(
                f"{repository.url(prefix + 'manifest.json')} does not describe {variant}: {error!r}"
            ) from error
    else:
        size = variant.removeprefix("sp")
        models = [path for path in files if fnmatch.fnmatch(path, f"{prefix}tokenizers/fineweb_{size}_*.model")]
        named = models[0] if len(models) == 1 else ""
    if not named.endswith(".model") or named not in files:
        raise PgolfError(
            f"{repository.name} has no SentencePiece model for variant {variant}"
            + (f" (its manifest names {named})" if named else "")
        )
    return files[named]


class _HuggingFace:
    """A dataset repository on the hub, at the commit it has now."""

    remote = True

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            import huggingface_hub
            from huggingface_hub.utils import disable_progress_bars
        except ImportError as error:
            raise PgolfError("--hub needs an extra: pip install 'pgolf[hub]'") from error
        disable_progress_bars()
        self._client = huggingface_hub
        try:
            self._revision = self._asked(lambda: huggingface_hub.HfApi().repo_info(name, repo_type="dataset").sha)
        except PgolfError as error:
            raise PgolfError(f"{error}; records name {', '.join(KNOWN)}") from error

    def files(self) -> Mapping[str, RemoteFile]:
        entries = self._asked(
            lambda: list(
                self._client.HfApi().list_repo_tree(
                    self.name, recursive=True, repo_type="dataset", revision=self._revision
                )
            )
        )
        found = {}
        for entry in entries:
            if hasattr(entry, "size"):  # a folder has none
                lfs = getattr(entry, "lfs", None)
                found[entry.path] = RemoteFile(entry.path, entry.size, lfs.sha256 if lfs else None)
        return found

    def fetch(self, file: RemoteFile, again: bool) -> Path:
        return Path(
            self._asked(
                lambda: self._client.hf_hub_download(
                    self.name, file.path, repo_type="dataset", revision=self._revision, force_download=again
                )
            )
        )

    def url(self, path: str) -> str:
        return f"hf://datasets/{self.name}@{self._revision}/{path}"

    def _asked(self, request: Callable[[], Any]) -> Any:
        with reading(f"the hub's dataset {self.name}"):
            return request()


class _Mirror:
    """A folder or fsspec URL with the hub's layout."""

    def __init__(self, name: str) -> None:
        self.name, self.remote = name, "://" in name
        self._base = name if "://" in name else Path(name).resolve().as_posix()
        self._files, self._root = file_system(self._base)
        self._cache: Path | None = None

    def files(self) -> Mapping[str, RemoteFile]:
        found = {}
        with reading(self.name):
            for path, properties in self._files.find(self._root, detail=True).items():
                inside = path[len(self._root) :].lstrip("/")
                found[inside] = RemoteFile(inside, int(properties["size"]), None)
        return found

    def fetch(self, file: RemoteFile, again: bool) -> Path:
        if "://" not in self.name:
            return Path(self.name) / file.path
        import tempfile

        if self._cache is None:
            self._folder = tempfile.TemporaryDirectory()
            self._cache = Path(self._folder.name)
        local = self._cache / file.path
        local.parent.mkdir(parents=True, exist_ok=True)
        with reading(self.url(file.path)):
            self._files.get_file(f"{self._root}/{file.path}", str(local))
        return local

    def url(self, path: str) -> str:
        return f"{self._base.rstrip('/')}/{path}"
