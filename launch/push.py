"""A release folder to the Hugging Face hub: what would go is shown, what would be overwritten is asked for.

A token is taken, never shown: not in a line, not in an error. A folder with anything in it that is no part of a release
(optimizer states, pickles, caches, paths of this machine, tokens) is refused before the hub is spoken to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..data.types import DataError

# Names in the folder, relative. Whatever is none of these is no part of a release.
PARTS = (
    *("README.md", "LICENSE*", "NOTICE*", ".gitattributes", "*.safetensors", "*.safetensors.index.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "omni2vec.json", "omni2vec_template.json"),
    *("*processor_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "*.model", "chat_template.jinja", "chat_template.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*/config.json"),
)
LEFT = ("done.json",)  # a run's own mark in the folder: stays here
TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

Say = Callable[[str], None]
Ask = Callable[[str], bool]


@dataclass(frozen=True)
class Sent:
    """One file that goes: its path in the repository, its bytes, and whether one of that name is there already."""

    path: str
    size: int
    overwrites: bool = False


@dataclass(frozen=True)
class Shipment:
    """What a push does. `exists`: None where the hub was not asked. `stays`: files there that this folder lacks."""

    repo_id: str
    private: bool
    files: tuple[Sent, ...]
    exists: bool | None = None
    stays: tuple[str, ...] = ()
    url: str = ""  # of the commit, once it is made

    @property
    def total(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def overwritten(self) -> tuple[str, ...]:
        return tuple(f.path for f in self.files if f.overwrites)

    def lines(self) -> Iterator[str]:
        """The shipment in words, a line a file."""
        kind = {None: "the hub was not asked", True: "exists", False: "is made"}[self.exists]
        yield f"to {self.repo_id} ({kind}{', private' if self.private and not self.exists else ''})"
        for file in self.files:
            yield f"  {_bytes(file.size):>10}  {file.path}{'  (overwrites)' if file.overwrites else ''}"
        yield f"  {_bytes(self.total):>10}  in {len(self.files)} files"
        if self.stays:
            yield f"  stays there: {', '.join(self.stays)}"


def push(
    folder: str | Path,
    repo_id: str,
    *,
    dry_run: bool = False,
    yes: bool = False,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Release",
    say: Say = print,
    ask: Ask | None = None,
) -> Shipment:
    """Pushes a release folder to the model repository `repo_id`, in one commit. Nothing there is deleted.

    dry_run: only show. yes: overwrite without asking. private: of a repository that is made. token: by default the one
    that `hf auth login` stored. ask: how to ask; without it, an overwrite needs `yes`. Raises DataError for a folder
    that is no release (naming the files), and for every answer of the hub but success.
    """
    folder = Path(folder)
    if not REPO.fullmatch(repo_id):
        raise DataError(f"{repo_id!r} is no repository's name; expected owner/name")
    files = check(folder)
    api, secret = _api(token, endpoint)
    with _Scrubbed(secret, repo_id):
        there, head = _there(api, repo_id, dry_run)
    shipment = Shipment(
        repo_id,
        private,
        tuple(Sent(name, (folder / name).stat().st_size, name in (there or ())) for name in files),
        exists=None if there is None else head is not None,
        stays=tuple(sorted(set(there or ()) - set(files) - {".gitattributes"})),
    )
    for line in shipment.lines():
        say(_scrub(line, secret))
    if dry_run:
        return shipment
    if shipment.overwritten and not yes and not (ask and ask(f"Overwrite {len(shipment.overwritten)} files?")):
        raise DataError(
            f"{repo_id}: {len(shipment.overwritten)} files would be overwritten "
            f"({', '.join(shipment.overwritten[:5])}); nothing was sent. Say yes, or choose another repository"
        )
    with _Scrubbed(secret, repo_id):
        url = _send(api, folder, shipment, head, message)
    say(_scrub(f"pushed: {url}", secret))
    return Shipment(repo_id, private, shipment.files, shipment.exists, shipment.stays, url)


def check(folder: Path) -> list[str]:
    """The names of the files that would go, sorted. Raises DataError for a folder that should not."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the output folder of a Release step")
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    files = [name for name in found if name not in LEFT]
    strays = [name for name in files if not any(fnmatch(name, part) for part in PARTS) or (folder / name).is_symlink()]
    if strays:
        raise DataError(
            f"{folder}: {len(strays)} files are no part of a release: {', '.join(strays[:8])}. "
            "Push the output of a Release step, or remove them"
        )
    if not any(name.endswith(".safetensors") for name in files):
        raise DataError(f"{folder}: no weights (*.safetensors); give the output folder of a Release step")
    _card(folder / "README.md")
    for name in files:
        if not name.endswith((".safetensors", ".model")):
            _text(folder / name)
    return files


def _card(path: Path) -> None:
    from huggingface_hub import metadata_load

    if not path.is_file():
        raise DataError(f"{path}: no model card; a Release step writes one")
    try:
        head = metadata_load(path)
    except Exception as error:  # a YAML error, whatever its class
        raise DataError(f"{path}: the metadata between the dashes is no YAML: {error}") from error
    if not isinstance(head, dict):
        raise DataError(f"{path}: no metadata between two lines of dashes at its head; a Release step writes it")
    if missing := [key for key in ("license", "library_name", "pipeline_tag") if not head.get(key)]:
        raise DataError(f"{path}: the metadata lacks {', '.join(missing)}")
    base = head.get("base_model")
    for name in base if isinstance(base, list) else [base] if base else []:
        if not REPO.fullmatch(str(name)):
            raise DataError(f"{path}: base_model {name!r} is no hub name; set Release(base_model='owner/name')")


def _text(path: Path) -> None:
    """No token and no path of this machine inside."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if TOKEN.search(text):
        raise DataError(f"{path}: holds what looks like a hub token; remove it, and revoke it if it was ever shared")
    if path.suffix != ".json" or path.name in ("tokenizer.json", "vocab.json"):
        return
    for key, value in _strings(json.loads(text)):
        if re.match(r"/[^/\s]+/[^\s]|[A-Za-z]:\\", value) and "\n" not in value:
            raise DataError(f"{path}: {key} is a path of this machine ({value}); give the hub's name in its place")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(inner, f"{key}[{i}]")


def _api(token: str | None, endpoint: str | None) -> tuple[Any, str]:
    """The hub's client, and the secret that must not be seen."""
    from huggingface_hub import HfApi, get_token

    return HfApi(endpoint=endpoint, token=token), token or get_token() or ""


def _there(api: Any, repo_id: str, dry_run: bool) -> tuple[set[str] | None, str | None]:
    """Names of the files in the repository, and its head commit; None, None where a dry run cannot reach the hub."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return set(), None
    except Exception:
        if dry_run:
            return None, None
        raise
    return {s.rfilename for s in info.siblings or ()}, info.sha or ""


def _send(api: Any, folder: Path, shipment: Shipment, head: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    if head is None:
        api.create_repo(shipment.repo_id, private=shipment.private)
    operations = [CommitOperationAdd(file.path, str(folder / file.path)) for file in shipment.files]
    # The commit that was looked at is the one that is built on: a push in between is refused, not overwritten.
    done = api.create_commit(shipment.repo_id, operations, commit_message=message, parent_commit=head or None)
    return str(done.commit_url)


def _scrub(text: str, secret: str) -> str:
    if secret:
        text = text.replace(secret, "hf_***")
    return TOKEN.sub("hf_***", text)


class _Scrubbed:
    """Turns any failure of the hub into a DataError without the token, and without the error that may hold it."""

    def __init__(self, secret: str, repo_id: str) -> None:
        self.secret = secret
        self.repo_id = repo_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            said = _scrub(f"{type(error).__name__}: {error}", self.secret)
            raise DataError(f"{self.repo_id}: the hub refused or could not be reached: {said}") from None


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
