"""The autoencoder of one kernel size, and the places of kernels and names along its code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from dogfit.analysis.results import Clusters, Scores, SizeResult
from dogfit.analysis.stage_files import load_arrays, save_arrays
from dogfit.clusters import LatentSegments, Segment, paper_r2, segment_code
from dogfit.errors import TooFewKernels
from dogfit.fitting.config import FitConfig
from dogfit.runtime.keys import make_key
from dogfit.runtime.progress import Progress
from dogfit.runtime.tasks import Codes, Rows, already_sharded, encode_rows, train_on_rows
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig

Namer = Callable[["Autoencoder"], LatentSegments]
"""Cuts an autoencoder's code into named segments."""


def train_or_load(
    name: str,
    rows: Rows,
    config: "AutoencoderConfig",
    work: Workspace,
    progress: Progress,
    *,
    title: str,
    checkpoints: bool = False,
) -> "Autoencoder":
    """Train an autoencoder, or read the one of an earlier run.

    Args:
      name: of the stage.
      rows: kernels of one size, centered and of unit norm.
      config: of the training.
      work: where the autoencoder is kept.
      progress: shown while training.
      title: shown.
      checkpoints: resume a training that was interrupted.

    Returns:
      The autoencoder.

    Raises:
      TooFewKernels: there are fewer than `dogfit.autoencoder.MIN_KERNELS`.
    """
    from dogfit.autoencoder import MIN_KERNELS, Autoencoder

    if len(rows.kernels) < MIN_KERNELS:
        raise TooFewKernels(f"{len(rows.kernels)} kernels are too few; it takes {MIN_KERNELS}")
    key = make_key("autoencoder", rows.kernels, config)

    def write(path: Path) -> None:
        folder = work.checkpoint_folder(name, key) if checkpoints else None
        with progress.stage(title, "steps") as update:
            path.write_bytes(train_on_rows(rows, config, folder, update).to_bytes())

    return Autoencoder.load(work.stage(name, key, write))


def segment_namer(families: Sequence[str], config: FitConfig) -> Namer:
    """Make the function that names segments of a code by fits to the kernels decoded there.

    Args:
      families: names of the families to fit.
      config: of the fits.

    Returns:
      A function of an autoencoder.
    """

    def name(autoencoder: "Autoencoder") -> LatentSegments:
        from dogfit.fitting.api import fit_kernels
        from dogfit.labels import label_fits

        return segment_code(
            autoencoder,
            lambda kernels: fit_kernels(kernels, families, config=config),
            lambda fit: label_fits(fit, paper_r2(autoencoder.size)),
        )

    return name


@dataclass(frozen=True)
class LatentCode:
    """Places of the kernels along an autoencoder's code, and the names along it.

    Attributes:
      segments: the code cut into named segments.
      centers: a kernel for each name, decoded in the middle of its longest segment `[m, k, k]`.
      own: code and reconstruction cosine of the network's usable kernels.
      nulls: the same of each null.
    """

    segments: LatentSegments
    centers: Float[np.ndarray, "m k k"]
    own: Codes
    nulls: tuple[Codes, ...]

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        sets = (self.own, *self.nulls)
        arrays = {f"code {i}": code for i, (code, _) in enumerate(sets)}
        arrays |= {f"cosine {i}": cosine for i, (_, cosine) in enumerate(sets)}
        arrays |= {f"segments.{name}": getattr(self.segments, name) for name in ("code", "kernels", "r2")}
        about = {
            "sets": len(sets),
            "labels": self.segments.label.tolist(),
            "segments": [list(segment) for segment in self.segments.segments],
        }
        save_arrays(path, {**arrays, "centers": self.centers}, about)

    @classmethod
    def load(cls, path: Path) -> "LatentCode":
        """Read what `save` wrote."""
        arrays, about = load_arrays(path)
        segments = LatentSegments(
            arrays["segments.code"],
            arrays["segments.kernels"],
            np.asarray(about["labels"], dtype=str),
            arrays["segments.r2"],
            tuple(Segment(*segment) for segment in about["segments"]),
        )
        own, *nulls = [(arrays[f"code {i}"], arrays[f"cosine {i}"]) for i in range(about["sets"])]
        return cls(segments, arrays["centers"], own, tuple(nulls))


def place_on_code(
    result: SizeResult,
    autoencoder: "Autoencoder",
    name: Namer,
    depends_on: Sequence[Any],
    work: Workspace,
    progress: Progress,
) -> SizeResult:
    """Add the autoencoder's code, its named segments and the reconstructions.

    Args:
      result: with kernels and nulls.
      autoencoder: for kernels of this size.
      name: see `segment_namer`.
      depends_on: what the names depend on besides the autoencoder.
      work: where codes are kept.
      progress: shown while encoding.

    Returns:
      The result with codes and clusters.
    """
    size, usable = autoencoder.size, result.usable.kernels
    key = make_key(
        "code", autoencoder.to_bytes(), usable, *(null.kernels for null in result.nulls), *depends_on
    )

    def write(path: Path) -> None:
        with progress.stage(f"name {size}×{size} segments of the code", "kernels"):
            own = encode_rows(already_sharded(usable, result.good), autoencoder)
            segments = name(autoencoder)
            nulls = tuple(autoencoder.encode_and_score(null.kernels) for null in result.nulls)
            LatentCode(segments, _centers(autoencoder, segments), own, nulls).save(path)

    return _with_code(result, LatentCode.load(work.stage(f"code-{size}", key, write)), autoencoder)


def _centers(autoencoder: "Autoencoder", segments: LatentSegments) -> Float[np.ndarray, "m k k"]:
    centers = []
    for name in segments.names:
        longest = max((s for s in segments.segments if s.name == name), key=lambda s: s.stop - s.start)
        centers.append(autoencoder.decode(np.array([(longest.start + longest.stop) / 2]))[0])
    return np.stack(centers)


def _with_code(result: SizeResult, found: LatentCode, autoencoder: "Autoencoder") -> SizeResult:
    def spread(values: np.ndarray, empty: float, dtype: type) -> np.ndarray:
        """Put values of the usable kernels into the rows of all."""
        full = np.full(len(result.own.r2), empty, dtype)
        full[result.good] = values
        return full

    def coded(scores: Scores, code: np.ndarray, cosine: np.ndarray) -> Scores:
        return replace(scores, code=code, cosine=cosine)

    code, cosine = found.own
    index = spread(np.asarray(found.segments.assign(code)), -1, np.int32)
    return replace(
        result,
        own=coded(result.own, spread(code, np.nan, np.float32), spread(cosine, np.nan, np.float32)),
        nulls=tuple(coded(null, *codes) for null, codes in zip(result.nulls, found.nulls, strict=True)),
        latent_segments=found.segments,
        code_clusters=Clusters(index, found.segments.names, found.centers),
        heldout_loss=float(autoencoder.heldout_loss),
        autoencoder_notes=autoencoder.notes,
    )
