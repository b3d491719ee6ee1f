"""Tuned constants of where searches start: one table for all engines.

Widths and offsets are in taps, spacings and ratios in widths of the central Gaussian, sizes in taps along a
side. Where an engine has a value of its own, a comment below says why.

The command that measures all of them, and what it says of kernels that nothing here was tuned on:

    python benchmarks/accuracy.py --sources drawn --families gaussian dog d1 d2 dog_d1 dog_d2

    760 drawn kernels of 3x3 to 31x31 at SciPy's optimum or below: 100.0 % (native); of 1,800, with sampled
    and discrete profiles among them: 99.9 % (xla); of 500 real 7x7 kernels, others than those in sight when
    the nodes were chosen: 99.9 % for `dog` (xla). Elliptic families, 30 drawn of each: 100 %.

`benchmarks/accuracy.md` has the full tables.
"""

import math
from dataclasses import dataclass, field

# Offsets from a tap's centre, along one axis. Around the centre of every tap they make a line of centres
# that is symmetric about the middle of the kernel.
Offsets = tuple[float, ...]


@dataclass(frozen=True)
class GridConstants:
    """Nodes of round models: grids of centres, at several widths and surrounds.

    A derivative of a Gaussian far narrower than a tap changes its shape within hundredths of a tap where its
    integral over the tap vanishes: the first at the tap's centre, the second and the Laplacian at its edges.
    Offsets around those places are for that order alone.

    Attributes:
      width_step: largest ratio of neighbouring widths.
      small_width_step: the same for models with more optima: shared amplitudes, derivatives at single points.
      widest: largest width, of the kernel's longer side.
      narrow: width below which centres lie at offsets from each tap instead of evenly.
      spacing: distance of neighbouring centres, in widths.
      sampled_spacing: the same where values at single points make a shape, in widths.
      min_spacing: least distance, in taps.
      max_spacing: largest distance, of the kernel's side.
      derivative_max_spacing: the same for derivatives of one width, which change within taps however wide.
      offsets: for every model where narrow.
      first_offsets: for first derivatives of the narrowest Gaussian.
      second_offsets: for second derivatives of the narrowest Gaussian.
      laplacian_offsets: for pairs of nearly equal, narrowest width.
      shared_offsets: for narrow pairs with a shared amplitude, which change at either place.
      near_ratio: ratio of widths that stands for a pair of nearly equal ones, a Gaussian and its Laplacian.
      ratios: widths of a surround with a gain of its own, in widths of the centre.
      far_ratio: ratio above which a surround is no neighbour of narrower ones.
      shared_ratios: widths of a surround that shares the amplitude, in widths of the centre.
      surround_weights: weights of a surround that shares the amplitude.
      narrow_surround_weights: the same where the centre is narrow.
      narrow_widths: narrow widths of pairs with a shared amplitude, in narrowest widths.
      cancelling_offsets: for second derivatives that a surround with a shared amplitude all but cancels,
        where hundredths of its weight make a difference too.
      cancelling_weights: weights of that surround.
      fine_size: longest side with offsets for one order alone: in larger kernels they outnumber all others.
    """

    width_step: float = 1.8
    small_width_step: float = 1.4
    widest: float = 0.75
    narrow: float = 0.4
    spacing: float = 0.7
    sampled_spacing: float = 0.5
    min_spacing: float = 0.3
    max_spacing: float = 0.17
    derivative_max_spacing: float = 0.14
    offsets: Offsets = (-0.3, 0.0, 0.3, 0.5)
    first_offsets: Offsets = (-0.18, -0.06, 0.06, 0.18)
    second_offsets: Offsets = (-0.4, -0.2, 0.2, 0.4, 0.48, 0.49, 0.5, 0.51, 0.52)
    laplacian_offsets: Offsets = (-0.4, -0.2, 0.2, 0.4, 0.475, 0.49, 0.497, 0.503, 0.51, 0.525)
    shared_offsets: Offsets = (-0.4, -0.2, 0.0, 0.2, 0.4, 0.48, 0.5, 0.52)
    near_ratio: float = 1.15
    ratios: tuple[float, ...] = (1.7, 3.0, 7.0)
    far_ratio: float = 5.0
    shared_ratios: tuple[float, ...] = (1.5, 2.7, 6.0)
    surround_weights: tuple[float, ...] = (0.35, 0.65, 0.85, 1.0)
    narrow_surround_weights: tuple[float, ...] = (0.1, 0.5, 0.73, 1.0)
    narrow_widths: tuple[float, ...] = (1.0, 1.18)
    cancelling_offsets: Offsets = (-0.04, 0.0, 0.04, 0.49, 0.51)
    cancelling_weights: tuple[float, ...] = (0.7, 0.75, 0.78)
    fine_size: int = 15


@dataclass(frozen=True)
class FusedConstants:
    """Nodes of the fused search for accelerators, all of whose energies are matrix products.

    It keeps the best node of each strip of a grid, not each peak.

    Attributes:
      widths: number of widths, in equal ratios.
      widest: largest width, of the kernel's side.
      narrow: width up to which each tap may hold an optimum of its own.
      strips: strips into which a kernel is cut.
      more_strips: strips besides those as many as taps along a side, where narrow.
      spacing: distance of neighbouring centres of a shape that derivatives make, in widths.
      smooth_spacing: the same of other shapes, in widths.
      min_spacing: least distance of a shape that derivatives make, in taps.
      smooth_min_spacing: the same of other shapes, in taps.
      max_spacing: largest distance, of the kernel's side.
      ratios: widths of a surround with a gain of its own, in widths of the centre, in groups that compete.
      laplacian_ratio: ratio below which such a pair all but is a Gaussian and its Laplacian.
      offsets: by shape, for widths up to the first number, offsets from a tap's centre to both sides.
    """

    widths: int = 10
    widest: float = 0.75
    narrow: float = 0.5
    strips: int = 2
    more_strips: int = 3
    spacing: float = 0.5
    smooth_spacing: float = 1.0
    min_spacing: float = 0.25
    smooth_min_spacing: float = 0.5
    max_spacing: float = 0.17
    ratios: tuple[tuple[float, ...], ...] = ((1.1,), (1.7, 3.0, 7.0))
    laplacian_ratio: float = 1.5
    offsets: dict[str, tuple[tuple[float, Offsets], ...]] = field(
        default_factory=lambda: {
            "first": ((0.35, (0.0, 0.1, 0.2, 0.35, 0.5)), (0.5, (0.0, 0.3, 0.5))),
            "second": ((0.35, (0.0, 0.2, 0.4, 0.475, 0.49, 0.497)), (0.5, (0.0, 0.3, 0.5))),
            "laplacian": (
                (0.35, (0.0, 0.15, 0.3, 0.4, 0.46, 0.48, 0.49, 0.497)),
                (0.5, (0.0, 0.3, 0.5)),
            ),
        }
    )


@dataclass(frozen=True)
class EllipticConstants:
    """Nodes of elliptic models, for every engine that has them: images made in full.

    Attributes:
      most_taps: largest kernel that has such nodes: their number grows with the taps, and the cost of each.
      ring: size `|e|` and first direction, in steps, of a ring of ellipses around the circle.
      along_axes: the same of larger ellipses, which lie next to the bounds along the axes.
      between: the same of large ellipses between the axes.
      directions: number of ellipses of a ring.
      width_step: largest ratio of neighbouring widths.
      widest: largest width, of the kernel's longer side.
      narrow: width below which derivatives change their shape within a tap.
      narrow_offsets: of centres from those of taps, below that width.
      offsets: the same for other widths, by the shorter axis, up to the number before them.
      ratios: widths of a surround with a gain of its own, in widths of the centre.
      shared_ratios: widths of a surround that shares the amplitude.
      surround_weights: weights of a surround that shares the amplitude.
      places: nodes that differ by their centre alone compete for so many places.
    """

    most_taps: int = 100
    ring: tuple[float, float] = (0.7, 0.0)
    along_axes: tuple[float, float] = (1.1, 0.0)
    between: tuple[float, float] = (1.2, 0.5)
    directions: int = 8
    width_step: float = 1.8
    widest: float = 0.6
    narrow: float = 0.42
    narrow_offsets: Offsets = (-0.47, -0.3, 0.0, 0.3, 0.47)
    offsets: tuple[tuple[float, Offsets], ...] = (
        (0.6, (-0.25, 0.0, 0.25, 0.5)),
        (1.2, (0.0, 0.5)),
        (math.inf, (0.0,)),
    )
    ratios: tuple[float, ...] = (1.15, 2.0, 5.0)
    shared_ratios: tuple[float, ...] = (1.5, 2.5, 6.0)
    surround_weights: tuple[float, ...] = (0.6, 1.0)
    places: int = 3


XLA = GridConstants()
# The compiled search projects a kernel once for all models of a width, so that widths and centres closer
# together cost it little; in XLA each model pays for them. At SciPy's optimum with these: of 200 real 7x7
# kernels 99.5 % for `dog`, 100.0 % for `d1` and `d2`, by `accuracy.py --profiles integrated --engines
# native --families dog d1 d2 --sources real --sizes 7 --kernels 40`. The offsets beside the corners of taps
# leave none of the narrowest second derivatives there without a node that sees four fifths of its energy; in
# XLA, with fewer seeds refined, they cost one of the master key filters its optimum.
NATIVE = GridConstants(
    width_step=1.5,
    max_spacing=0.14,
    second_offsets=(-0.4, -0.2, 0.2, 0.4, 0.48, 0.494, 0.5, 0.506, 0.52),
)
# Nodes are columns of matrix products, a slot keeps one node of a strip: spacings differ for that. At SciPy's
# optimum, by `benchmarks/accuracy.py --engines pallas`: 99.6 to 99.8 % of 500 real 7x7 kernels in the four
# default families, 99.4 to 100 % of 180 drawn ones.
FUSED = FusedConstants()
# Both engines that fit ellipses take the same nodes.
ELLIPTIC = EllipticConstants()
