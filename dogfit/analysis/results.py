"""Findings of a run as arrays: the input of every table, figure and page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from dogfit.kernelset.kernelset import KernelSet

if TYPE_CHECKING:
    import polars as pl

    from dogfit.clusters import LatentSegments

NETWORK = "network"
CODE_NAMES, FIT_LABELS, K_MEANS = "name along the code", "label of the fit", "k-means"
"""Names of the partitions of the kernels of one size."""


@dataclass(frozen=True)
class Scores:
    """Fits and codes of one set of kernels of one size: the network's own, or a null.

    Attributes:
      name: `NETWORK`, or the name of the null.
      kernels: centred, unit norm `[n, k, k]`; a row without a fit may be zero.
      layer: index into `KernelSet.layers`, -1 for a null that stands for no layer `[n]`.
      r2: of the best family `[n]`, NaN without a fit.
      label: `[n]`.
      cosine: similarity to the autoencoder's reconstruction `[n]`, NaN without one; None if none was trained.
      code: place on the autoencoder's code `[n]`, NaN where there is none; None if none was trained.
      difficulty: rank of a null, larger for one that is harder to beat; None for the network.
    """

    name: str
    kernels: Float[np.ndarray, "n k k"]
    layer: Int[np.ndarray, " n"]
    r2: Float[np.ndarray, " n"]
    label: np.ndarray
    cosine: Float[np.ndarray, " n"] | None = None
    code: Float[np.ndarray, " n"] | None = None
    difficulty: int | None = None

    def select(self, rows: np.ndarray | slice) -> "Scores":
        """The scores of some rows, by mask, index or slice."""
        return replace(
            self,
            kernels=self.kernels[rows],
            layer=self.layer[rows],
            r2=self.r2[rows],
            label=self.label[rows],
            cosine=None if self.cosine is None else self.cosine[rows],
            code=None if self.code is None else self.code[rows],
        )

    def of_layers(self, layers: Sequence[int]) -> "Scores":
        """The kernels of some layers; a null that stands for no layer stands for all."""
        if self._stands_for_all:
            return self
        # Kernels are ordered by layer: what lies together is a view, and none of it is looked through.
        # Of one type, or every search would copy them all.
        wanted = np.unique(np.asarray(layers, self.layer.dtype))
        starts, stops = (np.searchsorted(self.layer, wanted, side) for side in ("left", "right"))
        if len(wanted) and (starts[1:] == stops[:-1]).all():
            return self.select(slice(starts[0], stops[-1]))
        return self.select(np.concatenate([np.zeros(0, int), *map(np.arange, starts, stops)]))

    @cached_property
    def _stands_for_all(self) -> bool:
        if (self.layer < 0).all():
            return True
        if (self.layer < 0).any() or (np.diff(self.layer) < 0).any():
            raise ValueError(f"{self.name}: kernels must be ordered by layer, or all stand for none")
        return False

    @cached_property
    def label_counts(self) -> Counter[str]:
        """Kernels by label."""
        return Counter(self.label.tolist())

    @cached_property
    def r2_quantiles(self) -> dict[str, float | None]:
        """Quantiles of R² where there is one, by their level."""
        values = self.r2[np.isfinite(self.r2)].astype(np.float64)
        levels = (5, 25, 50, 75, 95)
        found = np.percentile(values, levels).tolist() if values.size else [None] * len(levels)
        return {f"{level} %": value for level, value in zip(levels, found, strict=True)}


@dataclass(frozen=True)
class Clusters:
    """A partition of the kernels of one size.

    Attributes:
      index: cluster of each kernel, -1 for kernels left out `[n]`.
      names: of the clusters.
      centers: one kernel for each cluster, unit norm `[m, k, k]`.
    """

    index: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    centers: Float[np.ndarray, "m k k"]


Candidates = Literal["network", "null", "code"]


@dataclass(frozen=True)
class FilterSearch:
    """Universal filters found in one way.

    Attributes:
      name: "forward, network", "code, 25", ...
      candidates: what they were chosen from: kernels of the network or of its hardest null, by forward
        selection and judged on those kernels; or decoded codes, by backward elimination.
      filters: in the order of their worth `[m, k, k]`.
      explained: mean share of the kernels' energy that the first 1, 2, ... explain `[m]`.
    """

    name: str
    candidates: Candidates
    filters: Float[np.ndarray, "m k k"]
    explained: Float[np.ndarray, " m"]


@dataclass(frozen=True)
class Universal:
    """Few filters that stand for all kernels, and controls.

    Attributes:
      found: the filters, once for each way of finding them.
      controls: explained energy of the network's kernels by 1, 2, ... filters taken at random.
      given: filters to compare with, and the share of energy they explain; None if none has this size.
    """

    found: tuple[FilterSearch, ...]
    controls: Mapping[str, Float[np.ndarray, " m"]]
    given: Float[np.ndarray, "r k k"] | None = None
    given_explained: float | None = None


@dataclass(frozen=True)
class SizeResult:
    """All findings about the kernels of one size.

    Attributes:
      own: the network's kernels, in the order of the `KernelSet` group.
      good: those that can be analysed: neither constant nor zero nor damaged `[n]`.
      nulls: the null kernels; `null_rate` is the share of each that its threshold lets pass.
      fits: fitted numbers, a row per kernel.
      templates: fitted kernels in the checkpoint's units `[n, k, k]`, NaN without a fit.
      families: those fitted; `unidentifiable` those this size cannot identify, with the reason.
      kmeans: the baseline partition; None with fewer kernels than clusters.
      agreement: ARI and NMI between partitions, by the pair's name.
      latent_segments: the code cut into named segments; None if no autoencoder was trained, `no_autoencoder`
        says why.
      code_clusters: partition of the kernels by the names of those segments.
      heldout_loss: mean cosine dissimilarity on kernels the autoencoder did not see.
      autoencoder_notes: what a reader must know about the training.
      silhouette: of the partitions, by name.
      universal: few filters that stand for all; None with fewer than two kernels.
      evidence: for and against clusters, ready for JSON; None where it was not asked for.
    """

    own: Scores
    good: Bool[np.ndarray, " n"]
    nulls: tuple[Scores, ...]
    null_rate: float
    fits: "pl.DataFrame"
    templates: Float[np.ndarray, "n k k"]
    families: tuple[str, ...]
    unidentifiable: Mapping[str, str]
    kmeans: Clusters | None = None
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    silhouette: Mapping[str, float] = field(default_factory=dict)
    latent_segments: "LatentSegments | None" = None
    code_clusters: Clusters | None = None
    heldout_loss: float | None = None
    no_autoencoder: str | None = None
    autoencoder_notes: tuple[str, ...] = ()
    universal: Universal | None = None
    evidence: Mapping[str, Any] | None = None

    @property
    def code(self) -> Float[np.ndarray, " n"] | None:
        """Place of each kernel on the code `[n]`, NaN for kernels left out."""
        return self.own.code

    @cached_property
    def usable(self) -> Scores:
        """The network's kernels that can be analysed; all shares are of these."""
        return self.own if self.good.all() else self.own.select(self.good)

    @property
    def clusters(self) -> Clusters | None:
        """The named segments of the code, or the k-means baseline where there is no code."""
        return self.code_clusters or self.kmeans

    @property
    def easiest_null(self) -> Scores:
        """The null that is easiest to beat."""
        return min(self.nulls, key=lambda null: null.difficulty or 0)

    @property
    def hardest_null(self) -> Scores:
        """The null that is hardest to beat, among those that have kernels."""
        return max((null for null in self.nulls if len(null.r2)), key=lambda null: null.difficulty or 0)


@dataclass(frozen=True)
class RunResult:
    """All findings of a run.

    Attributes:
      kernelset: the kernels.
      sizes: findings for each kernel size.
      settings: those that the numbers depend on.
      skipped_sizes: kernel sizes that were left out, with the reason.
      notes: what else a reader must know of the run, beside the notes of the kernels.
    """

    kernelset: KernelSet
    sizes: Mapping[int, SizeResult]
    settings: Mapping[str, Any]
    skipped_sizes: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
