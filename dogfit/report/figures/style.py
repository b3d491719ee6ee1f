"""One look for all figures: sizes, colors, and how kernels are shown."""

import colorsys
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

RC: dict[Any, Any] = {
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
# Okabe and Ito's palette, safe for color-blind readers.
KERNELS = "#0072B2"
MARKS = "#444444"
NULL_COLORS = ("#999999", "#009E73", "#D55E00")
NULL_DASHES: tuple[Any, ...] = ("-", (0, (2, 2)), "-")
MODEL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
KERNEL_MAP = "RdBu_r"
CELL_PIXELS, GAP_PIXELS, FRAME_GREY = 56, 3, 0.78
# Hue of each kind of label; on and off apart, blobs and centre-surround apart from bars, crosses and rings.
_HUES = {"on": 0.07, "off": 0.57, "d1": 0.42, "on d2": 0.93, "off d2": 0.73, "saddle": 0.14}
_GREYS = {"unclear": 0.62, "unfitted": 0.85}


def figure(width: float, height: float) -> "Figure":
    """Make an empty figure, in inches, drawn by Agg. Call inside `matplotlib.rc_context(RC)`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(fig: "Figure", dpi: int = DPI) -> bytes:
    """Render a figure as PNG, free of dates and versions."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def label_colors(labels: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Choose a color for each label: a hue for each kind of label, shades within it."""
    kinds: dict[str, list[str]] = {kind: [] for kind in _HUES}
    for label in labels:
        if label not in _GREYS:
            kinds[_kind(label)].append(label)
    colors = {
        label: colorsys.hls_to_rgb(_HUES[kind], 0.4 + 0.45 * place, 0.8 - 0.2 * place)
        for kind, members in kinds.items()
        for place, label in zip(np.linspace(0, 1, len(members)), members, strict=True)
    }
    return colors | {label: (grey, grey, grey) for label, grey in _GREYS.items() if label in labels}


def _kind(label: str) -> str:
    first, _, rest = label.partition("-")
    form = rest.partition("-")[0] in ("bar", "cross", "ring")
    return f"{first} d2" if form else first


def color_scale(limit: float) -> "ScalarMappable":
    """Scale of colors from -`limit`, blue, to `limit`, red."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(-limit, limit), KERNEL_MAP)


def show_kernels(
    ax: "Axes",
    rows: Sequence[Sequence[Float[np.ndarray, "k k"]]],
    limit: float,
    *,
    left: float,
    top: float,
    columns: int | None = None,
    width: float = 1.0,
) -> None:
    """Show kernels in rows of framed cells, red above zero, blue below, white at zero.

    One image holds all of them: axes for each take a minute to lay out.

    Args:
      ax: loses its ticks.
      rows: kernels `[k, k]`, row by row.
      limit: value of the darkest red.
      left, top: where the first cell begins; cells are one unit high, downwards.
      columns: cells in a row; as many as the longest row has if None.
      width: of a cell.
    """
    scale = color_scale(limit)
    columns = columns or max(len(row) for row in rows)
    zoom = max(1, round(CELL_PIXELS / rows[0][0].shape[-1]))
    cell = rows[0][0].shape[-1] * zoom
    step = cell + 2 * (GAP_PIXELS + 1)
    sheet = np.ones((len(rows) * step, columns * step, 4))
    for y, row in enumerate(rows):
        for x, kernel in enumerate(row):
            up, along = y * step + GAP_PIXELS, x * step + GAP_PIXELS
            sheet[up : up + cell + 2, along : along + cell + 2, :3] = FRAME_GREY
            colors = scale.to_rgba(np.nan_to_num(kernel)).repeat(zoom, 0).repeat(zoom, 1)
            sheet[up + 1 : up + 1 + cell, along + 1 : along + 1 + cell] = colors
    ax.imshow(sheet, extent=(left, left + columns * width, top + len(rows), top), interpolation="antialiased")
    ax.axis("off")


def symmetric_limit(kernels: Float[np.ndarray, "..."]) -> float:
    """Limit of a shared diverging scale; one tap in a hundred lies outside, so that the rest is not pale."""
    values = np.abs(kernels[np.isfinite(kernels)])
    return float(np.quantile(values, 0.99)) if values.any() else 1.0


def plain(text: str, length: int = 40) -> str:
    """Replace characters of a checkpoint's text that the font may lack by question marks, and shorten it."""
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text if len(text) <= length else f"{text[: length - 1]}~"
