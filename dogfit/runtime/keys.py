"""Keys of stages: digests of exactly what a stage depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

import dogfit


def make_key(*parts: Any) -> str:
    """Digest what a stage depends on.

    Another version of dogfit gives other keys: it may compute other numbers.

    Args:
      parts: arrays count by type, shape and content, bytes by content, anything else by its JSON; dataclasses
        and mappings count by their fields, which may hold arrays.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256(dogfit.__version__.encode())
    for part in parts:
        _add(digest, part)
    return digest.hexdigest()


def _add(digest: Any, part: Any) -> None:
    if is_dataclass(part) and not isinstance(part, type):
        part = asdict(part)
    if isinstance(part, np.ndarray):
        digest.update(f"array {part.dtype} {part.shape};".encode())
        digest.update(np.ascontiguousarray(part).data)
    elif isinstance(part, bytes):
        digest.update(f"bytes {len(part)};".encode())
        digest.update(part)
    elif isinstance(part, Mapping):
        digest.update(f"mapping {len(part)};".encode())
        for name, value in part.items():
            _add(digest, name)
            _add(digest, value)
    else:
        text = json.dumps(part, default=asdict).encode()
        digest.update(f"json {len(text)};".encode())
        digest.update(text)
