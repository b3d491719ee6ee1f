"""Checkpoints on the Hugging Face hub, read by byte ranges."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from dogfit.checkpoints.files import LocalFile, ReadCallback
from dogfit.checkpoints.hub_cache import (
    Pieces,
    Repository,
    cached_repository,
    incomplete_download,
    store_listing,
)
from dogfit.checkpoints.hub_config import HubConfig
from dogfit.checkpoints.hub_errors import offline_error, translate_error
from dogfit.errors import HubError

# 97 % of safetensors headers are shorter than this, so one request usually brings the whole header.
FIRST_BYTES = 65_536
# A gap shorter than this costs less to read than another request.
MERGE_GAP = 65_536
TIMEOUT = httpx2.Timeout(30, connect=10)
RETRIED_STATUSES = (429, 500, 502, 503, 504)
CONNECTIONS = 8

T = TypeVar("T")


class _WholeFileError(Exception):
    """The server answered a range request with the whole file."""


@dataclass(eq=False)
class HubFile:
    """A file of a repository at one commit. Pieces that were read are kept in a cache on disk."""

    repository: Repository
    name: str
    pieces: Pieces
    config: HubConfig
    whole: LocalFile | None = None
    """The file on this machine, once it had to be downloaded whole."""

    @property
    def where(self) -> str:
        """The file as messages name it."""
        return f"{self.repository}/{self.name}"

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the hub or the cache."""
        return self.pieces.bytes_held if self.whole is None else self.whole.size()

    def size(self) -> int:
        """Bytes of the whole file.

        Raises:
          HubError: if the hub cannot be reached or refuses.
        """
        if self.whole is None and self.pieces.file_size is None:
            self._fetch([(0, FIRST_BYTES)], None)
        if self.whole is not None:
            return self.whole.size()
        assert self.pieces.file_size is not None
        return self.pieces.file_size

    def read(self, ranges: Sequence[tuple[int, int]], on_read: ReadCallback | None = None) -> list[bytes]:
        """Read byte ranges.

        Args:
          ranges: each `(start, stop)`, half open.
          on_read: called with the length of every piece that has arrived.

        Returns:
          The bytes of each range.

        Raises:
          HubError: if the hub cannot be reached or refuses, or offline if the range was never fetched.
        """
        if self.whole is None:
            found = [self.pieces.find(start, stop) for start, stop in ranges]
            missing = [span for span, content in zip(ranges, found, strict=True) if content is None]
            if on_read:
                on_read(sum(len(content) for content in found if content is not None))
            self._fetch(_merge_spans(missing), on_read)
        if self.whole is not None:
            return self.whole.read(ranges, on_read)
        contents = [self.pieces.find(start, stop) for start, stop in ranges]
        return [content for content in contents if content is not None]

    def local(self) -> Path:
        """Download the whole file, unless huggingface_hub's cache has it.

        Returns:
          The file in that cache.

        Raises:
          HubError: if the hub cannot be reached or refuses, or offline if the cache does not hold it.
        """
        if self.whole is None:
            if self.config.offline:
                raise offline_error(self.repository.name, self.repository.revision)
            self.whole = LocalFile(_attempt(self._download, self.repository, self.config))
        return self.whole.path

    def _fetch(self, spans: Sequence[tuple[int, int]], on_read: ReadCallback | None) -> None:
        """Fetch spans into `pieces`, or the whole file where the server does not do ranges."""
        if not spans:
            return
        if self.config.offline:
            raise offline_error(self.repository.name, self.repository.revision)

        def fetch(span: tuple[int, int]) -> None:
            count = _attempt(lambda: self._fetch_span(*span), self.repository, self.config)
            if on_read:
                on_read(count)

        try:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(fetch, spans))
        except _WholeFileError:
            self.local()

    def _fetch_span(self, start: int, stop: int) -> int:
        """Fetch one span; return its length, which is less than asked for at the end of the file."""
        url = hf_hub_url(
            self.repository.name,
            self.name,
            revision=self.repository.commit,
            endpoint=self.config.endpoint,
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
                cache_dir=self.config.cache_dir,
                endpoint=self.config.endpoint,
                etag_timeout=30,
            )
        )


def open_repository(name: str, revision: str | None, config: HubConfig) -> Repository:
    """Find the commit that the name of a repository means, and its files.

    Args:
      name: `owner/name`.
      revision: branch, tag or commit; `main` if None.
      config: the hub.

    Returns:
      The repository at that commit.

    Raises:
      InputError: if this cannot be the name of a repository.
      HubError: if there is no such repository or revision, or the hub cannot be reached or refuses; offline,
        if neither cache knows the repository.
    """
    revision = revision or "main"
    if config.offline:
        known = cached_repository(name, revision, config)
        if known is None:
            raise offline_error(name, revision)
        return known

    def ask() -> Repository:
        info = HfApi(endpoint=config.endpoint).model_info(name, revision=revision, timeout=30)
        files = tuple(sibling.rfilename for sibling in info.siblings or ())
        prefix = "license:"
        named = (tag.removeprefix(prefix) for tag in info.tags or () if tag.startswith(prefix))
        return Repository(name, revision, info.sha or revision, files, next(named, None))

    unknown = Repository(name, revision, revision, (), None)
    repository = _attempt(ask, unknown, config, repository_found=False)
    store_listing(repository, config)
    return repository


def open_file(repository: Repository, name: str, config: HubConfig) -> HubFile | LocalFile:
    """Open one file of a repository; nothing is read.

    Args:
      repository: the repository at one commit.
      name: path of the file in it.
      config: the hub.

    Returns:
      A local file where huggingface_hub's cache holds it.

    Raises:
      HubError: if offline and that cache holds only a part.
    """
    cached = try_to_load_from_cache(
        repository.name, name, cache_dir=config.cache_dir, revision=repository.commit
    )
    if isinstance(cached, str):
        return LocalFile(Path(cached))
    if config.offline and incomplete_download(repository, name, config):
        raise HubError(
            f"offline, and the download of {repository}/{name} in huggingface_hub's cache is incomplete: its "
            "link leads to a file that is missing; run once online"
        )
    return HubFile(repository, name, Pieces.open(repository, name, config), config)


def _attempt(
    action: Callable[[], T], repository: Repository, config: HubConfig, *, repository_found: bool = True
) -> T:
    """Do `action`, again after a pause where that may help; translate the error that stays."""
    pauses = iter(config.pauses_s)
    while True:
        try:
            return action()
        except (HfHubHTTPError, httpx2.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            temporary = isinstance(error, httpx2.TransportError) or status in RETRIED_STATUSES
            pause = next(pauses, None) if temporary else None
            if pause is None:
                raise translate_error(
                    error,
                    repository.name,
                    repository.revision,
                    endpoint=config.endpoint,
                    repository_found=repository_found,
                ) from error
        time.sleep(pause)


def _merge_spans(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge spans into fewer that cover them, gaps up to MERGE_GAP included."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start - merged[-1][1] <= MERGE_GAP:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged
