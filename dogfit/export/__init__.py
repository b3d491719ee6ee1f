"""Checkpoints whose depthwise kernels are replaced by what describes them."""

from typing import TYPE_CHECKING

from dogfit.lazy import lazy_names

if TYPE_CHECKING:
    from dogfit.export.match import match_gain_and_mean
    from dogfit.export.methods import nearest_filter, reconstruction, universal
    from dogfit.export.replace import Replaced, replace_kernels

_HOMES = {
    "Replaced": "dogfit.export.replace",
    "match_gain_and_mean": "dogfit.export.match",
    "nearest_filter": "dogfit.export.methods",
    "reconstruction": "dogfit.export.methods",
    "replace_kernels": "dogfit.export.replace",
    "universal": "dogfit.export.methods",
}
__all__ = [
    "Replaced",
    "match_gain_and_mean",
    "nearest_filter",
    "reconstruction",
    "replace_kernels",
    "universal",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
