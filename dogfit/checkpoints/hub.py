"""Checkpoints on the Hugging Face hub, read by byte ranges."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from dogfit.checkpoints.files import LocalFile, Report
from dogfit.checkpoints.hub_cache import Pieces, Repository, local_snapshot, recall, remember
from dogfit.checkpoints.hub_errors import explain, offline_error
from dogfit.errors import HubError

# 97 % of safetensors headers are shorter than this, so one request usually brings the whole header.
FIRST_BYTES = 65_536
# A gap shorter than this costs less to read than another request.
MERGE_GAP = 65_536
TIMEOUT = httpx2.Timeout(30, connect=10)
# Seconds before each new attempt after a cut connection, a rate limit or a server error.
PAUSES = (0.5, 2.0)
RETRIED = (429, 500, 502, 503, 504)
CONNECTIONS = 8

T = TypeVar("T")


class _WholeFileError(Exception):
    """The server answered a range request with the whole file."""


@dataclass(eq=False)
class HubFile:
    """A file of a repository at one commit. Pieces once read are kept in a cache on disk."""

    repository: Repository
    name: str
    pieces: Pieces
    offline: bool
    whole: LocalFile | None = None
    """The file on this machine, where ranges are refused or the hub's own cache has it."""
    downloaded: bool = field(default=False)

    @property
    def where(self) -> str:
        return f"{self.repository}/{self.name}"

    @property
    def bytes_read(self) -> int:
        if self.whole is None:
            return self.pieces.bytes_held
        return self.whole.size() if self.downloaded else self.whole.bytes_read

    def size(self) -> int:
        if self.whole is None and self.pieces.file_size is None:
            self._get([(0, FIRST_BYTES)], None)
        if self.whole is not None:
            return self.whole.size()
        assert self.pieces.file_size is not None
        return self.pieces.file_size

    def read(self, ranges: Sequence[tuple[int, int]], report: Report | None = None) -> list[bytes]:
        """The bytes of each range.

        Raises:
          HubError: if the hub cannot be reached or refuses, or offline if the range was never fetched.
        """
        if self.whole is None:
            found = [self.pieces.find(start, stop) for start, stop in ranges]
            missing = [span for span, content in zip(ranges, found, strict=True) if content is None]
            if report:
                report(sum(len(content) for content in found if content is not None))
            self._get(_merge(missing), report)
        if self.whole is not None:
            return self.whole.read(ranges, report)
        contents = [self.pieces.find(start, stop) for start, stop in ranges]
        return [content for content in contents if content is not None]

    def local(self) -> Path:
        """The whole file in the hub's own cache.

        Raises:
          HubError: if the hub cannot be reached or refuses, or offline if the cache does not hold it.
        """
        if self.whole is None:
            if self.offline:
                raise offline_error(self.repository.name, self.repository.revision)
            self.whole, self.downloaded = LocalFile(_attempt(self._download, self.repository)), True
        return self.whole.path

    def _get(self, spans: Sequence[tuple[int, int]], report: Report | None) -> None:
        """Fetch spans into `pieces`, or the whole file where the server does not do ranges."""
        if not spans:
            return
        if self.offline:
            raise offline_error(self.repository.name, self.repository.revision)

        def fetch(span: tuple[int, int]) -> None:
            count = _attempt(lambda: self._get_span(*span), self.repository)
            if report:
                report(count)

        try:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(fetch, spans))
        except _WholeFileError:
            self.whole, self.downloaded = LocalFile(_attempt(self._download, self.repository)), True

    def _get_span(self, start: int, stop: int) -> int:
        url = hf_hub_url(
            self.repository.name, self.name, revision=self.repository.commit, endpoint=constants.ENDPOINT
        )
        headers = build_hf_headers() | {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise _WholeFileError
            content = response.read()
        try:
            unit, _, place = response.headers.get("Content-Range", "").partition(" ")
            span, _, total = place.partition("/")
            first, last = (int(number) for number in span.split("-"))
            size = int(total)
        except ValueError:
            raise _WholeFileError from None
        if unit != "bytes" or first != start or len(content) != last - first + 1 != min(stop, size) - start:
            raise httpx2.RemoteProtocolError("the server sent another range than was asked for")
        self.pieces.add(start, content, size)
        return len(content)

    def _download(self) -> Path:
        return Path(
            hf_hub_download(
                self.repository.name,
                self.name,
                revision=self.repository.commit,
                cache_dir=constants.HF_HUB_CACHE,
                endpoint=constants.ENDPOINT,
                etag_timeout=30,
            )
        )


def open_repository(name: str, revision: str | None, offline: bool) -> Repository | Path:
    """Find the commit that a repository name means, and its files.

    Returns:
      The repository, or offline the folder where the hub's own cache keeps a copy of it.

    Raises:
      HubError: if there is no such repository or revision, or the hub cannot be reached or refuses.
    """
    revision = revision or "main"
    if offline or constants.is_offline_mode():
        known = recall(name, revision) or local_snapshot(name, revision)
        if known is None:
            raise offline_error(name, revision)
        return known

    def ask() -> Repository:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(name, revision=revision, timeout=30)
        files = tuple(sibling.rfilename for sibling in info.siblings or ())
        license = next((tag[8:] for tag in info.tags or () if tag.startswith("license:")), None)
        return Repository(name, revision, info.sha or revision, files, license)

    repository = _attempt(ask, Repository(name, revision, revision, (), None), opened=False)
    remember(repository)
    return repository


def open_file(repository: Repository, name: str, offline: bool) -> HubFile | LocalFile:
    """One file of a repository; local where the hub's own cache holds it."""
    cached = try_to_load_from_cache(
        repository.name, name, cache_dir=constants.HF_HUB_CACHE, revision=repository.commit
    )
    if isinstance(cached, str):
        return LocalFile(Path(cached))
    offline = offline or constants.is_offline_mode()
    return HubFile(repository, name, Pieces.open(repository, name), offline)


def _attempt(action: Callable[[], T], repository: Repository, *, opened: bool = True) -> T:
    """Do `action`, again after a pause where that may help; explain what stays wrong."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except (HfHubHTTPError, httpx2.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            passing = isinstance(error, httpx2.TransportError) or status in RETRIED
            if pause is None or not passing:
                raise explain(error, repository.name, repository.revision, opened) from error
            time.sleep(pause)
    raise HubError(f"{repository}: gave up")


def _merge(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fewer spans that cover the given ones, gaps up to MERGE_GAP read along."""
    if not spans:
        return []
    spans = sorted(spans)
    merged = [spans[0]]
    for start, stop in spans[1:]:
        if start - merged[-1][1] <= MERGE_GAP:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged
