"""Spellings of what lies on the hub: `owner/name`, `hf-hub:owner/name`, `hf://owner/name`, and URLs."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from dogfit.checkpoints.files import INDEX_SUFFIX, SUFFIX
from dogfit.errors import InputError

HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_SCHEME = re.compile(r"(?:hf-hub|hf_hub|hf|huggingface):(?://)?", re.IGNORECASE)
# Neither part starts with a dot, so `../x` is never taken for a repository.
_PART = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# `..` is in no git reference.
_REVISION = re.compile(r"(?!.*[.][.])\w[\w./-]*", re.ASCII)
# Parts of a page's address between the repository and a revision.
_PAGES = ("tree", "blob", "resolve", "raw", "commit", "commits")
# References whose names have slashes: refs/pr/3.
_LONG_REFERENCE = ("refs",)
_OTHER_KINDS = ("datasets", "spaces", "collections", "papers", "docs", "blog", "buckets")


@dataclass(frozen=True)
class HubAddress:
    """A repository on the hub, or something in it."""

    repository: str
    """Name on the hub, `owner/name`."""
    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""
    path: str = ""
    """File or folder in the repository; empty for its top."""


def read_address(source: str, hosts: tuple[str, ...] = HOSTS) -> HubAddress | None:
    """Read what a source says about the hub.

    Args:
      source: as a caller gives it.
      hosts: hosts whose URLs are pages of the hub.

    Returns:
      The address; None if the source is no address of the hub, and so a local path.

    Raises:
      InputError: if it is an address of the hub that names no repository of a model, or another URL.
    """
    text = source.strip()
    scheme = _SCHEME.match(text)
    url = urlsplit(text if "://" in text else f"//{text}")
    if scheme:
        parts = [unquote(part) for part in text[scheme.end() :].strip("/").split("/")]
    elif url.netloc in hosts:
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
    elif "://" in text:
        raise InputError(
            f"{source}: dogfit reads local files and the hub; download the file and give its path"
        )
    else:
        return _read_name(text)
    if parts[0] == "models":
        parts = parts[1:]
    address = None if parts[:1] and parts[0] in _OTHER_KINDS else _from_parts(parts)
    if address is None:
        raise InputError(
            f"{source}: names no model on the hub; expected owner/name[@revision], or its page's URL"
        )
    return address


def _read_name(text: str) -> HubAddress | None:
    """Read `owner/name[@revision]`, or a safetensors file of it."""
    parts = text.split("/")
    address = _from_parts(parts)
    if address is None or (address.path and not address.path.endswith((SUFFIX, INDEX_SUFFIX))):
        return None
    return address


def _from_parts(parts: list[str]) -> HubAddress | None:
    """Address of the parts of a path on the hub; None if they cannot be one."""
    if len(parts) < 2:
        return None
    owner, rest = parts[0], "/".join(parts[1:])
    name, at, rest = rest.partition("@") if "@" in parts[1] else (parts[1], "", "/".join(parts[2:]))
    if not (_PART.fullmatch(owner) and _PART.fullmatch(name)):
        return None
    others = rest.split("/") if rest else []
    revision = None
    if at:
        # A revision may have slashes, unless a file follows.
        whole = not rest.endswith((SUFFIX, INDEX_SUFFIX))
        length = len(others) if whole else _reference_length(others)
        revision, others = "/".join(others[:length]), others[length:]
    elif others and others[0] in _PAGES:
        length = _reference_length(others[1:])
        revision, others = "/".join(others[1 : 1 + length]) or None, others[1 + length :]
    if (at or revision) and not _REVISION.fullmatch(revision or ""):
        return None
    if any(part in ("", ".", "..") for part in others):
        return None
    return HubAddress(f"{owner}/{name}", revision, "/".join(others))


def _reference_length(parts: list[str]) -> int:
    """Number of the parts that a revision takes."""
    return min(3 if parts[:1] and parts[0] in _LONG_REFERENCE else 1, len(parts))
