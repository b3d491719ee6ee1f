"""dogfit itself, from the kernels alone: it is given no starts, and finds its own in the time measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import dogfit
from dogfit.fitting.families import BUILTIN_FAMILIES
from peers.common import FAMILIES, Family


def points(family: Family, parameters: np.ndarray) -> np.ndarray:
    """Points `[n, p]` from reported parameters."""
    names = [parameter.name for parameter in BUILTIN_FAMILIES[family.name].parameters]
    columns = {name: parameters[:, i].astype(np.float64) for i, name in enumerate(names)}
    found = [columns["x0_px"], columns["y0_px"], np.log(columns["sigma_px"])]
    if family.two_widths:
        found.append(np.log(columns["sigma_surround_px"] / columns["sigma_px"]))
    return np.stack(found, axis=-1)


class Dogfit:
    """`dogfit.fit_kernels` at its default effort."""

    def __init__(self, families: tuple[str, ...] = dogfit.FAMILIES, **config: Any) -> None:
        self.families = [family for family in FAMILIES if family.name in families]
        self.config = dogfit.FitConfig(**config)

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `common.Fitter`; `starts` goes unused."""
        del starts
        result = dogfit.fit_kernels(kernels, [f.name for f in self.families], config=self.config)
        return {f.name: points(f, np.asarray(result.parameters[f.name]))[None] for f in self.families}
