"""Cache on disk of what was read from the hub: listings of repositories, and pieces of files.

Its folder is `HubConfig.pieces_dir`. Pieces and listings are kept by commit, so they never go out of date.
The commit that a branch or tag stands for may change, and is asked for whenever the hub can be reached.
"""

import json
import re
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from huggingface_hub.file_download import repo_folder_name

from dogfit.atomic_write import write_atomically
from dogfit.checkpoints.hub_config import HubConfig

# The beginning of a commit's name.
_COMMIT = re.compile(r"[0-9a-f]{4,40}")


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    """Name on the hub, `owner/name`."""
    revision: str
    """Branch, tag or commit, as asked for."""
    commit: str
    """Commit that the revision stands for."""
    files: tuple[str, ...]
    """Paths of its files."""
    license: str | None
    """Licence that the hub shows; None where it shows none."""

    def __str__(self) -> str:
        return self.name if self.revision == "main" else f"{self.name}@{self.revision}"


def store_listing(repository: Repository, config: HubConfig) -> None:
    """Keep the listing of a repository for use offline.

    Args:
      repository: the listing; it is kept under its revision and under its commit.
      config: where to keep it.
    """
    record = json.dumps(asdict(repository)).encode()
    for revision in {repository.revision, repository.commit}:
        _store(_listing_path(repository.name, revision, config), record)


def cached_repository(name: str, revision: str, config: HubConfig) -> Repository | None:
    """Find a repository without asking the hub.

    Args:
      name: `owner/name`.
      revision: branch, tag or commit.
      config: where to look.

    Returns:
      The listing that `store_listing` kept, else what huggingface_hub's cache holds of this revision; None if
      neither has it.
    """
    refs = _listing_path(name, revision, config)
    short = sorted(refs.parent.glob(f"{revision}*.json")) if _COMMIT.fullmatch(revision) else []
    for path in (refs, *short[: len(short) == 1]):
        try:
            record = json.loads(path.read_bytes())
            return Repository(**{**record, "files": tuple(record["files"]), "revision": revision})
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return _cached_snapshot(name, revision, config)


def incomplete_download(repository: Repository, name: str, config: HubConfig) -> bool:
    """Tell whether huggingface_hub's cache links to a file that it does not hold.

    Args:
      repository: the repository at one commit.
      name: path of the file in it.
      config: where the cache is.
    """
    link = _cache_folder(repository.name, config) / "snapshots" / repository.commit / name
    return link.is_symlink() and not link.exists()


def _cached_snapshot(name: str, revision: str, config: HubConfig) -> Repository | None:
    folder = _cache_folder(name, config)
    snapshots = {path.name: path for path in sorted((folder / "snapshots").glob("*")) if path.is_dir()}
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except OSError:
        # Without refs/main, a single snapshot is the one that was meant.
        short = "" if revision == "main" else revision
        known = [snapshot for snapshot in snapshots if snapshot.startswith(short)]
        abbreviated = revision == "main" or _COMMIT.fullmatch(revision)
        commit = known[0] if abbreviated and len(known) == 1 else revision
    if commit not in snapshots:
        return None
    snapshot = snapshots[commit]
    found = (path for path in snapshot.rglob("*") if path.is_file() or path.is_symlink())
    files = tuple(sorted(path.relative_to(snapshot).as_posix() for path in found))
    return Repository(name, revision, commit, files, None)


def _cache_folder(name: str, config: HubConfig) -> Path:
    return config.cache_dir / repo_folder_name(repo_id=name, repo_type="model")


@dataclass
class Pieces:
    """Parts of one file that were read before, in memory and on disk."""

    folder: Path
    """Folder of the parts on disk, named START-STOP-SIZE by their bytes and the size of the file."""
    file_size: int | None = None
    """Bytes of the whole file; None until a part is known."""
    held: dict[int, bytes] = field(default_factory=dict)
    """Start -> bytes of the parts in use."""
    on_disk: dict[tuple[int, int], Path] = field(default_factory=dict)
    """(start, stop) -> file of the parts on disk."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, repository: Repository, name: str, config: HubConfig) -> "Pieces":
        """Find the known parts of a file.

        Args:
          repository: the repository at one commit.
          name: path of the file in it.
          config: where parts are kept.
        """
        # The name is untrusted text, so the folder is named by its hash.
        digest = sha256(name.encode()).hexdigest()[:24]
        pieces = cls(_folder(repository.name, repository.commit, config) / digest)
        for path in sorted(pieces.folder.glob("*-*-*")) if pieces.folder.is_dir() else ():
            try:
                start, stop, size = (int(number) for number in path.name.split("-"))
            except ValueError:
                continue
            if path.stat().st_size == stop - start:
                pieces.on_disk[start, stop], pieces.file_size = path, size
        return pieces

    @property
    def bytes_held(self) -> int:
        """Bytes of the parts in use."""
        return sum(map(len, self.held.values()))

    def add(self, start: int, content: bytes, file_size: int) -> None:
        """Keep a part.

        Args:
          start: position of its first byte in the file.
          content: its bytes.
          file_size: bytes of the whole file.
        """
        with self.lock:
            self.held[start] = content
            self.file_size = file_size
        _store(self.folder / f"{start}-{start + len(content)}-{file_size}", content)

    def find(self, start: int, stop: int) -> bytes | None:
        """Read bytes `start` to `stop` of the file; None unless one part holds them all."""
        for begin, content in self.held.items():
            if begin <= start and stop <= begin + len(content):
                return content[start - begin : stop - begin]
        for (begin, end), path in self.on_disk.items():
            if begin <= start and stop <= end and begin not in self.held:
                try:
                    self.held[begin] = path.read_bytes()
                except OSError:
                    continue
                return self.held[begin][start - begin : stop - begin]
        return None


def _listing_path(name: str, revision: str, config: HubConfig) -> Path:
    return _folder(name, "refs", config) / f"{revision.replace('/', '--')}.json"


def _folder(name: str, part: str, config: HubConfig) -> Path:
    return config.pieces_dir / name.replace("/", "--") / part


def _store(path: Path, content: bytes) -> None:
    # A cache that cannot be written costs a download later, no more.
    with suppress(OSError):
        write_atomically(path, content)
