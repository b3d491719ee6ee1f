"""Checkpoints as sources name them: the files of a path or of a hub repository."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from dogfit.checkpoints.files import (
    INDEX_SUFFIX,
    OTHER_FORMATS,
    PICKLES,
    SUFFIX,
    LocalFile,
    Reader,
    choose_file,
    find_local,
    quote_names,
    read_index,
    refuse_format,
)
from dogfit.checkpoints.header import conversion_hint
from dogfit.checkpoints.hub_address import HOSTS, HubAddress, read_address
from dogfit.checkpoints.hub_config import HubConfig, hub_from_environment
from dogfit.errors import InputError

# File names that say nothing about the model: its folder is named instead.
GENERIC_STEMS = ("model", "pytorch_model", "weights", "checkpoint")


@dataclass(frozen=True)
class IndexFile:
    """Index of a checkpoint that is split into several files."""

    name: str
    """File name."""
    reader: Reader
    weight_map: Mapping[str, str]
    """Tensor name -> name of the file that holds it."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its files, of which nothing but an index has been read."""

    model: str
    """Name of the model, after the file, its folder or the repository."""
    files: Mapping[str, Reader]
    """File name -> safetensors file."""
    index: IndexFile | None = None
    """Index of the files; None for a single file."""
    revision: str | None = None
    """Commit on the hub; None for local files."""
    license: str | None = None
    """Licence that the hub names; None where it names none."""
    notes: tuple[str, ...] = ()
    """Remarks on the choice of files, in words."""

    @property
    def all_files(self) -> dict[str, Reader]:
        """File name -> file, the index last if there is one."""
        return {**self.files, **({self.index.name: self.index.reader} if self.index else {})}


def open_checkpoint(source: str | Path, *, offline: bool = False, hub: HubConfig | None = None) -> Checkpoint:
    """Find the files of a checkpoint.

    Args:
      source: a file, a folder or a repository, see `load_kernels`.
      offline: ask nothing of the hub.
      hub: the hub of repositories; `hub_from_environment()` if None.

    Returns:
      The checkpoint; of its files nothing but an index has been read.

    Raises:
      InputError: if the source is missing or of another format.
      HubError: if the hub cannot be reached or refuses.
    """
    path = Path(source).expanduser()
    if isinstance(source, str) and not path.exists():
        config = hub or hub_from_environment()
        address = read_address(source, (*HOSTS, urlsplit(config.endpoint).netloc))
        if address is not None and not _is_local(address, path):
            return _open_repository(address, replace(config, offline=config.offline or offline))
    return _open_local(path)


def _is_local(address: HubAddress, path: Path) -> bool:
    """True for a path that is more likely a missing local file than a name on the hub."""
    if address.path:
        return Path(path.parts[0]).is_dir()
    return path.suffix in (SUFFIX, *PICKLES, *OTHER_FORMATS)


def _open_local(path: Path) -> Checkpoint:
    file = find_local(path)
    stem = file.name.split(".")[0] if path.is_dir() or file.name.endswith(INDEX_SUFFIX) else file.stem
    model = file.parent.resolve().name if path.is_dir() or stem in GENERIC_STEMS else stem
    return _with_shards(
        model,
        file.name,
        [entry.name for entry in file.parent.iterdir() if entry.is_file()],
        open_file=lambda name: LocalFile(file.parent / name),
        exists=lambda name: (file.parent / name).is_file(),
        chosen=not path.is_dir(),
    )


def _open_repository(address: HubAddress, config: HubConfig) -> Checkpoint:
    # Here, because the hub's client is slow to import and local files do without.
    from dogfit.checkpoints.hub import open_file, open_repository

    repository = open_repository(address.repository, address.revision, config)
    model = str(repository) + (f"/{address.path}" if address.path else "")
    folder, name = address.path, None
    if address.path in repository.files:
        refuse_format(PurePosixPath(model), _download_hint(address, address.path))
        folder, _, name = address.path.rpartition("/")
    below = f"{folder}/" if folder else ""
    inside = [file.removeprefix(below) for file in repository.files if file.startswith(below)]
    if not inside:
        raise InputError(
            f"{model}: {repository} has no such file or folder; its safetensors files are "
            f"{quote_names([file for file in repository.files if file.endswith(SUFFIX)]) or 'none'}"
        )
    names = [file for file in inside if "/" not in file]
    checkpoint = _with_shards(
        model,
        name
        or choose_file(
            names, model, lambda: _folders_of(inside), lambda name: _download_hint(address, below + name)
        ),
        names,
        open_file=lambda name: open_file(repository, below + name, config),
        exists=lambda name: name in inside,
        chosen=name is not None,
    )
    return replace(checkpoint, revision=repository.commit, license=repository.license)


def _download_hint(address: HubAddress, file: str) -> str:
    """Write the commands that download a file of a repository and convert it."""
    words = ["hf", "download", address.repository, file]
    words += ["--revision", address.revision] if address.revision else []
    return conversion_hint(file, shlex.join([*words, "--local-dir", "."]))


def _folders_of(files: Sequence[str]) -> list[str]:
    """Folders that hold safetensors files."""
    return sorted({file.rpartition("/")[0] for file in files if "/" in file and file.endswith(SUFFIX)})


def _with_shards(
    model: str,
    name: str,
    names: Sequence[str],
    *,
    open_file: Callable[[str], Reader],
    exists: Callable[[str], bool],
    chosen: bool,
) -> Checkpoint:
    """Open a file, or every file that it names if it is an index.

    Args:
      model: name of the model.
      name: the file.
      names: all files beside it, itself among them.
      open_file: opens a file by its name.
      exists: tells whether there is a file of a name, in subfolders too.
      chosen: whether the caller named this very file.
    """
    file = open_file(name)
    if not name.endswith(INDEX_SUFFIX):
        if chosen:
            notes = _shard_notes(model, name, names, open_file)
        else:
            notes = _ignored_notes(model, [name], names)
        return Checkpoint(model, {name: file}, notes=notes)
    weight_map = read_index(file, exists)
    shards = sorted(set(weight_map.values()))
    index = IndexFile(name, file, weight_map)
    notes = () if chosen else _ignored_notes(model, shards, names)
    return Checkpoint(model, {shard: open_file(shard) for shard in shards}, index, notes=notes)


def _ignored_notes(model: str, read: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Name the safetensors files beside those that are read."""
    ignored = sorted(n for n in names if n.endswith(SUFFIX) and n not in read and not n.startswith("."))
    if not ignored:
        return ()
    return (
        f"{model}: its folder also holds {quote_names(ignored)}, not read; give the path of what you mean",
    )


def _shard_notes(
    model: str, name: str, names: Sequence[str], open_file: Callable[[str], Reader]
) -> tuple[str, ...]:
    """Say that a file is one of several that make a network."""
    indexes = [other for other in names if other.endswith(INDEX_SUFFIX)]
    index = next((other for other in indexes if _names_shard(open_file(other), name)), None)
    count = re.search(r"\d+[-_]of[-_](\d+)", name)
    if index is None and (count is None or int(count[1]) < 2):
        return ()
    many = f"one of {int(count[1])} files" if count else "one of several files"
    whole = f"give {index!r}, or its folder, to read all" if index else "give all of them, or their index"
    return (f"{model}: {name!r} is {many} that make the network, and the others are not read; {whole}",)


def _names_shard(index: Reader, name: str) -> bool:
    """True if an index names a file among others."""
    try:
        files = set(read_index(index, lambda _: True).values())
    except InputError:
        return False
    return name in files and len(files) > 1
