"""Checkpoints as sources name them: the files of a path or of a hub repository."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dogfit.checkpoints.files import (
    INDEX_SUFFIX,
    OTHER_FORMATS,
    PICKLES,
    SUFFIX,
    LocalFile,
    Reader,
    choose_file,
    find_local,
    read_index,
)
from dogfit.checkpoints.hub_config import HubConfig, hub_from_environment

# File names that say nothing about the model: its folder is named instead.
GENERIC_STEMS = ("model", "pytorch_model", "weights", "checkpoint")
# Neither part starts with a dot, so `../x` is never taken for a repository; `..` is in no git reference.
HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>(?!.*[.][.])\w[\w./-]*))?", re.ASCII
)


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
    """What is remarkable about the choice of files, in words."""

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
    match = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if match and not path.exists() and path.suffix not in (SUFFIX, *PICKLES, *OTHER_FORMATS):
        config = hub or hub_from_environment()
        config = replace(config, offline=config.offline or offline)
        return _open_repository(match["repo"], match["revision"], config)
    return _open_local(path)


def _open_local(path: Path) -> Checkpoint:
    file = find_local(path)
    stem = file.name.split(".")[0] if path.is_dir() or file.name.endswith(INDEX_SUFFIX) else file.stem
    model = file.parent.resolve().name if path.is_dir() or stem in GENERIC_STEMS else stem
    return _with_shards(
        model,
        file.name,
        open_file=lambda name: LocalFile(file.parent / name),
        exists=lambda name: (file.parent / name).is_file(),
    )


def _open_repository(name: str, revision: str | None, config: HubConfig) -> Checkpoint:
    # Here, because the hub's client is slow to import and local files do without.
    from dogfit.checkpoints.hub import open_file, open_repository

    repository = open_repository(name, revision, config)
    model = str(repository)
    checkpoint = _with_shards(
        model,
        choose_file([file for file in repository.files if "/" not in file], model),
        open_file=lambda name: open_file(repository, name, config),
        exists=lambda name: name in repository.files,
    )
    return replace(checkpoint, revision=repository.commit, license=repository.license)


def _with_shards(
    model: str, name: str, *, open_file: Callable[[str], Reader], exists: Callable[[str], bool]
) -> Checkpoint:
    """Open a file, or every file that it names if it is an index."""
    file = open_file(name)
    if not name.endswith(INDEX_SUFFIX):
        return Checkpoint(model, {name: file})
    weight_map = read_index(file, exists)
    shards = sorted(set(weight_map.values()))
    index = IndexFile(name, file, weight_map)
    return Checkpoint(model, {shard: open_file(shard) for shard in shards}, index)
