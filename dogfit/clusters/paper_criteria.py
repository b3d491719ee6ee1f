"""Two definitions of "classified", kept apart: the paper's, by reconstruction, and ours, by fit.

The paper calls a kernel classified when the cosine to its autoencoder reconstruction is high enough; here a
kernel is also described when the R² of its own fit is. Both are shares above a threshold, so both are given
over the whole range of thresholds, for the network and for every null.
"""

import numpy as np
from jaxtyping import ArrayLike, Float

# Cosine dissimilarity below which a kernel counts as classified, as reported for Babaiee et al. (ICLR 2024);
# no value is known for other sizes.
PAPER_DISSIMILARITY = {5: 0.2, 7: 0.3}


def paper_dissimilarity(size: int) -> float:
    """Cosine dissimilarity below which the paper counts a kernel as classified.

    The paper states 0.2 for 5x5 and 0.3 for 7x7; other sizes take the value of the nearer of the two.

    Args:
      size: taps per side.

    Returns:
      A number in [0, 2].
    """
    return PAPER_DISSIMILARITY[min(PAPER_DISSIMILARITY, key=lambda stated: abs(stated - size))]


def paper_r2(size: int) -> float:
    """R² of a centered kernel at the paper's dissimilarity: 0.64 for 5x5, 0.49 for 7x7.

    Args:
      size: taps per side.

    Returns:
      A number in [0, 1].
    """
    return round((1 - paper_dissimilarity(size)) ** 2, 4)


def paper_share(cosine: ArrayLike, size: int) -> float | None:
    """Share of kernels whose reconstruction passes the paper's threshold for their size.

    Args:
      cosine: reconstruction cosine `[n]`; NaN (a constant kernel) counts as not passing.
      size: taps per side.

    Returns:
      A number in [0, 1], or None where the paper gives no threshold or there are no kernels.
    """
    values = np.asarray(cosine)
    if size not in PAPER_DISSIMILARITY or values.size == 0:
        return None
    return float(np.mean(1 - values < PAPER_DISSIMILARITY[size]))


def share_above(values: ArrayLike, threshold: float) -> float | None:
    """Share of values above a threshold.

    Args:
      values: `[n]`; NaN counts as not above.
      threshold: values equal to it do not pass.

    Returns:
      A number in [0, 1]; None if there are no values.
    """
    values = np.asarray(values, np.float64)
    return float(np.mean(values > threshold)) if values.size else None


def threshold_curve(values: ArrayLike, thresholds: ArrayLike) -> Float[np.ndarray, "t"]:
    """Share of values above each of some thresholds.

    Args:
      values: `[n]`; NaN counts as not above.
      thresholds: `[t]`.

    Returns:
      Shares in [0, 1] `[t]`; NaN if there are no values.
    """
    ordered = np.asarray(values, np.float64)
    n = ordered.size
    ordered = np.sort(ordered[~np.isnan(ordered)])
    above = ordered.size - np.searchsorted(ordered, np.asarray(thresholds, np.float64), side="right")
    return above / n if n else np.full(above.shape, np.nan)


def paper_pattern(name: str) -> str:
    """Find the pattern of the paper to which a label belongs.

    The paper names on- and off-centre, on- and off-square, crosses, first and second derivatives. Bars, rings
    and saddles are second derivatives. Labels without a counterpart there (a blob cut off by the margin, your
    own families) are "other"; "unclear" and "unfitted" kernels and "unnamed" segments are "none".

    Args:
      name: a label of `dogfit.labels`, or the name of a segment.

    Returns:
      One of `PAPER_PATTERNS`.
    """
    first, _, rest = name.partition("-")
    if name in ("unclear", "unfitted", "unnamed"):
        return "none"
    if rest in ("centre", "square", "cross"):
        return name
    if first == "d1":
        return "first derivative"
    if first == "saddle" or rest.partition("-")[0] in ("bar", "ring"):
        return "second derivative"
    return "other"


PAPER_PATTERNS = (
    "on-centre",
    "off-centre",
    "on-square",
    "off-square",
    "on-cross",
    "off-cross",
    "first derivative",
    "second derivative",
    "other",
    "none",
)
"""All of them, in the order of display."""
