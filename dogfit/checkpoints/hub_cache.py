"""What was read from the hub, kept on disk: repository listings and pieces of files.

Lives beside the hub's own cache (`HF_ASSETS_CACHE`), keyed by commit, so nothing in it goes stale but the
commit a branch stands for, which is asked anew whenever the hub can be reached.
"""

import json
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from dogfit.atomic_write import write_atomically


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    revision: str
    """As asked for: a branch, a tag or a commit."""
    commit: str
    files: tuple[str, ...]
    license: str | None

    def __str__(self) -> str:
        return self.name if self.revision == "main" else f"{self.name}@{self.revision}"


def remember(repository: Repository) -> None:
    """Note which commit a revision stands for, for use offline."""
    record = json.dumps(asdict(repository)).encode()
    for revision in {repository.revision, repository.commit}:
        _write(_reference(repository.name, revision), record)


def recall(name: str, revision: str) -> Repository | None:
    """What `remember` noted; None if nothing usable."""
    try:
        record = json.loads(_reference(name, revision).read_bytes())
        return Repository(**{**record, "files": tuple(record["files"]), "revision": revision})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def local_snapshot(name: str, revision: str) -> Path | None:
    """The folder in which the hub's own cache keeps this revision; None if it does not."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


@dataclass
class Pieces:
    """The known pieces of one file, in memory and on disk."""

    folder: Path
    file_size: int | None = None
    held: dict[int, bytes] = field(default_factory=dict)
    """Start -> bytes of the pieces in use."""
    on_disk: dict[tuple[int, int], Path] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, repository: Repository, name: str) -> "Pieces":
        """The pieces of file `name`. Its name is untrusted text, so the folder is named by its hash."""
        folder = _folder(repository.name, repository.commit) / sha256(name.encode()).hexdigest()[:24]
        pieces = cls(folder)
        for path in sorted(folder.glob("*-*-*")) if folder.is_dir() else ():
            try:
                start, stop, size = (int(number) for number in path.name.split("-"))
            except ValueError:
                continue
            if path.stat().st_size == stop - start:
                pieces.on_disk[start, stop], pieces.file_size = path, size
        return pieces

    @property
    def bytes_held(self) -> int:
        return sum(map(len, self.held.values()))

    def add(self, start: int, content: bytes, file_size: int) -> None:
        """Keep a piece. A cache that cannot be written costs a download later, no more."""
        with self.lock:
            self.held[start] = content
            self.file_size = file_size
        _write(self.folder / f"{start}-{start + len(content)}-{file_size}", content)

    def find(self, start: int, stop: int) -> bytes | None:
        """The bytes from `start` to `stop`, if one piece holds them all."""
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


def _reference(name: str, revision: str) -> Path:
    return _folder(name, "refs") / f"{revision.replace('/', '--')}.json"


def _folder(name: str, part: str) -> Path:
    return Path(constants.HF_ASSETS_CACHE) / "dogfit" / name.replace("/", "--") / part


def _write(path: Path, content: bytes) -> None:
    # A cache that cannot be written is no reason to fail.
    with suppress(OSError):
        write_atomically(path, content)
