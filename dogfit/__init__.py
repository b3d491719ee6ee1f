"""Say what each depthwise kernel of a trained ConvNet is."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogfit.errors import DogfitError, HubError, InputError

__version__ = "0.1.0"

# Public names and where they live; loaded on first use, so that `import dogfit` costs nothing.
_HOME = {
    "DogfitError": "dogfit.errors",
    "HubError": "dogfit.errors",
    "InputError": "dogfit.errors",
}
__all__ = ["DogfitError", "HubError", "InputError"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dogfit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
