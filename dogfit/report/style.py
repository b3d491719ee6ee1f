"""One look for all figures: sizes, colours, and how kernels are shown."""

import colorsys
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RC = {
    "font.size": 8.0,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    # Names come from checkpoints: a dollar sign in one is not mathematics.
    "text.parse_math": False,
}
DPI = 200
# Okabe and Ito's palette, safe for colour-blind readers.
KERNELS = "#0072B2"
NULL_COLOURS = ("#999999", "#009E73", "#D55E00")
NULL_DASHES: tuple[Any, ...] = ("-", (0, (2, 2)), "-")
MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
KERNEL_MAP = "RdBu_r"
_HUES = (0.08, 0.57, 0.42, 0.88, 0.14, 0.72, 0.0)


def figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, drawn by Agg. Call inside `matplotlib.rc_context(RC)`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(fig: "Figure") -> bytes:
    """The figure as PNG, free of dates and versions."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def label_colours(labels: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour for each label: a hue for each kind (the part before the first dash), shades within it."""
    kinds: dict[str, list[str]] = {}
    for label in labels:
        kinds.setdefault(label.split("-")[0], []).append(label)
    kinds.pop("unfitted", None)
    colours = {"unfitted": (0.8, 0.8, 0.8)}
    for hue, members in zip(_cycle(_HUES, len(kinds)), kinds.values(), strict=True):
        for place, label in zip(np.linspace(0, 1, len(members)), members, strict=True):
            colours[label] = colorsys.hls_to_rgb(hue, 0.36 + 0.44 * place, 0.75 - 0.2 * place)
    return {label: colours[label] for label in labels}


def _cycle(values: Sequence[float], n: int) -> list[float]:
    return [values[i % len(values)] for i in range(n)]


def show_kernel(ax: "Axes", kernel: Float[np.ndarray, "k k"], limit: float) -> Any:
    """A kernel as a picture without ticks, red above zero and blue below, white at zero."""
    image = ax.imshow(kernel, cmap=KERNEL_MAP, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color("#bbbbbb")
        spine.set_linewidth(0.4)
    return image


def symmetric_limit(kernels: Float[np.ndarray, "..."]) -> float:
    """Limit of a shared diverging scale; a few taps in a thousand lie outside, lest they pale the rest."""
    values = np.abs(kernels[np.isfinite(kernels)])
    return float(np.quantile(values, 0.995)) if values.any() else 1.0


def plain(text: str, length: int = 40) -> str:
    """Text from a checkpoint, fit for a figure: characters the font may lack become question marks."""
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text if len(text) <= length else f"{text[: length - 1]}~"
