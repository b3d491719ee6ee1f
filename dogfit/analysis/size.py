"""All that is found about the kernels of one size: fits, nulls, autoencoder, clusters."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Float, Int

from dogfit.analysis.clustering import with_evidence, with_universal
from dogfit.analysis.results import CODE_NAMES, FIT_LABELS, K_MEANS, NETWORK, Clusters, Scores, SizeResult
from dogfit.analysis.tables import parquet
from dogfit.clusters import paper_r2, read_filters
from dogfit.job.config import RunConfig
from dogfit.kernelset.groups import Flag, KernelGroup
from dogfit.normalize import normalize_kernels
from dogfit.nulls import covariance_matched, untrained, white_noise
from dogfit.runtime.progress import Progress, Update
from dogfit.runtime.tasks import (
    Rows,
    encode_together,
    fit_kernels_of_job,
    fit_together,
    read_by_all,
    train_together,
)
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    import polars as pl

    from dogfit.autoencoder import Autoencoder
    from dogfit.clusters import LatentSegments

# As many nulls as kernels, within these: enough for a threshold at 1 %, and no more than shares need.
NULL_KERNELS = (8_192, 32_768)
# The paper names about ten patterns; used where no segments of a code say how many there are.
KMEANS_CLUSTERS = 10
# Of more kernels than these a random sample finds the centres, and scores the partitions.
KMEANS_SAMPLE, SILHOUETTE_SAMPLE = 200_000, 20_000


@dataclass(frozen=True)
class Fits:
    """What is kept of a `FitResult` between runs: its table with the labels, and the fitted kernels."""

    frame: "pl.DataFrame"
    templates: Float[np.ndarray, "n k k"]
    families: tuple[str, ...]
    unidentifiable: Mapping[str, str]

    @classmethod
    def of(cls, rows: Rows, config: RunConfig, progress: Update, *, whole: bool) -> Self:
        """Fit kernels and label the fits; `whole` keeps more than R² and labels."""
        import polars as pl

        from dogfit.labels import label_fits

        fit = fit_together(rows, config, progress)
        frame = fit.table() if whole else pl.DataFrame({"r2": np.asarray(fit.r2)})
        frame = frame.with_columns(
            pl.Series("label", label_fits(fit, paper_r2(fit.size)).tolist(), dtype=pl.String)
        )
        templates = fit.templates() if whole else np.empty((0, *rows.kernels.shape[1:]), np.float32)
        return cls(frame, templates, fit.family_names, dict(fit.unidentifiable))

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        from safetensors.numpy import save_file

        about = json.dumps({"families": self.families, "unidentifiable": dict(self.unidentifiable)}).encode()
        parts = {"frame": parquet(self.frame), "about": about}
        save_file(
            {"templates": self.templates, **{k: np.frombuffer(v, np.uint8) for k, v in parts.items()}}, path
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        import polars as pl
        from safetensors.numpy import load_file

        parts = load_file(path)
        about = json.loads(parts["about"].tobytes())
        frame = pl.read_parquet(io.BytesIO(parts["frame"].tobytes()))
        return cls(frame, parts["templates"], tuple(about["families"]), about["unidentifiable"])

    def scores(self, name: str, kernels: np.ndarray, layer: np.ndarray) -> Scores:
        """R² and labels of the fits to some kernels, given centred and of unit norm."""
        r2 = self.frame["r2"].fill_null(np.nan).to_numpy().astype(np.float32)
        return Scores(name, kernels, layer, r2, np.asarray(self.frame["label"].to_list(), dtype=str))


def why_not_fitted(size: int, families: Sequence[str]) -> str | None:
    """Why no kernel of a size can be fitted with any of the families, or None if one can."""
    from dogfit.fitting.api import MAX_SIZE, MIN_SIZE
    from dogfit.fitting.families import BUILTIN_FAMILIES, unidentifiable

    if not MIN_SIZE <= size <= MAX_SIZE:
        return f"{size}×{size} kernels left out: sizes {MIN_SIZE} to {MAX_SIZE} can be fitted"
    reasons = unidentifiable([BUILTIN_FAMILIES[name] for name in families], (size, size))
    return None if len(reasons) < len(set(families)) else "; ".join(reasons.values())


def analyze_size(
    group: KernelGroup,
    config: RunConfig,
    work: Workspace,
    progress: Progress,
    given: "Autoencoder | None" = None,
) -> SizeResult:
    """Fit the kernels and the nulls, train the autoencoder unless one is `given`, and find the clusters.

    Stages that an earlier run finished in the same workspace are read, not made again.
    """
    size = group.kernels.shape[-1]
    filters = None if config.filters is None else read_filters(config.filters)

    def fits(name: str, rows: Rows) -> Fits:
        def make(path: Path) -> None:
            with progress.stage(f"fit {size}×{size} {name}", "kernels") as update:
                Fits.of(rows, config, update, whole=name == NETWORK).save(path)

        return Fits.load(work.stage_file(f"fit-{size}-{name.replace(' ', '-')}.safetensors", make))

    found = fits(NETWORK, read_by_all(group.kernels))
    own = found.scores(NETWORK, group.normalized(), group.layer)
    nulls = [
        replace(
            fits(name, Rows(kernels)).scores(name, normalize_kernels(kernels), layer), difficulty=difficulty
        )
        for difficulty, (name, (kernels, layer)) in enumerate(null_kernels(group, config.seed).items())
    ]
    result = SizeResult(
        own=own,
        good=group.flag == Flag.OK,
        nulls=tuple(nulls),
        null_rate=config.null_rate,
        fits=found.frame,
        templates=found.templates,
        families=found.families,
        unidentifiable=found.unidentifiable,
    )
    autoencoder = _autoencoder(read_by_all(result.usable.kernels, result.good), config, work, progress, given)
    if isinstance(autoencoder, str):
        result = replace(result, no_autoencoder=autoencoder)
        autoencoder = None
    else:
        result = _with_code(result, autoencoder, config, progress)
        if given is not None:
            note = "given with --autoencoder: trained before, not on these kernels alone"
            result = replace(result, autoencoder_notes=(note, *result.autoencoder_notes))
    result = _with_baseline(result, config, progress)
    result = with_universal(result, autoencoder, filters, config, progress)
    if config.evidence:
        result = with_evidence(result, autoencoder, partial(_named, config=config), config, work, progress)
    return result


def null_kernels(group: KernelGroup, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Null kernels and the layers they stand for (-1: none), from the easiest to the hardest to beat."""
    k = group.kernels.shape[-1]
    n = int(np.clip(len(group.kernels), *NULL_KERNELS))
    nowhere = np.full(n, -1, np.int32)
    return {
        "white noise": (white_noise(n, k, seed), nowhere),
        "untrained": (untrained(n, k, seed), nowhere),
        "covariance-matched": covariance_matched(group, seed, n),
    }


def _autoencoder(
    rows: Rows,
    config: RunConfig,
    work: Workspace,
    progress: Progress,
    given: "Autoencoder | None",
) -> "Autoencoder | str":
    """The autoencoder of one size, or why there is none."""
    if config.no_autoencoder:
        return "left out on request"
    if given is not None:
        # Beside the results, as one trained here would be: its codes mean nothing without it.
        given.save(work.hidden / f"autoencoder-{given.size}")
        return given
    from dogfit.autoencoder import MIN_KERNELS, Autoencoder, AutoencoderConfig

    n, size = len(rows.kernels), rows.kernels.shape[-1]
    if n < MIN_KERNELS:
        return f"{n} kernels are too few; it takes {MIN_KERNELS}"
    settings = AutoencoderConfig(seed=config.seed)
    if config.steps is not None:
        settings = replace(settings, steps=config.steps)
    with work.stage_folder(f"autoencoder-{size}") as (folder, finished):
        if finished:
            return Autoencoder.load(folder)
        shutil.rmtree(folder, ignore_errors=True)
        with progress.stage(f"train {size}×{size} autoencoder", "steps") as update:
            autoencoder = train_together(rows, settings, work.hidden, f"training-{size}", update)
        autoencoder.save(folder)
    return autoencoder


def _named(autoencoder: "Autoencoder", config: RunConfig) -> "LatentSegments":
    """The autoencoder's code, cut into segments named by the fits of what is decoded there."""
    from dogfit.clusters import segment_code
    from dogfit.labels import label_fits

    return segment_code(
        autoencoder,
        lambda k: fit_kernels_of_job(k, config),
        lambda fit: label_fits(fit, paper_r2(autoencoder.size)),
    )


def _with_code(
    result: SizeResult, autoencoder: "Autoencoder", config: RunConfig, progress: Progress
) -> SizeResult:
    """The result with the autoencoder's code, segments and reconstructions."""

    def spread(values: np.ndarray, empty: float, dtype: type) -> np.ndarray:
        """Values of the good kernels, in the rows of all."""
        full = np.full(len(result.own.r2), empty, dtype)
        full[result.good] = values
        return full

    size = autoencoder.size
    with progress.stage(f"name {size}×{size} segments of the code", "kernels"):
        kernels = result.usable.kernels
        code, cosine = encode_together(read_by_all(kernels, result.good), autoencoder)
        segments = _named(autoencoder, config)
        index = np.asarray(segments.assign(code))
        nulls = [
            replace(null, code=null_code, cosine=null_cosine)
            for null in result.nulls
            for null_code, null_cosine in [autoencoder.encode_and_score(null.kernels)]
        ]
    centres = []
    for name in segments.names:
        longest = max((s for s in segments.segments if s.name == name), key=lambda s: s.stop - s.start)
        centres.append(autoencoder.decode(np.array([(longest.start + longest.stop) / 2]))[0])
    return replace(
        result,
        own=replace(
            result.own, cosine=spread(cosine, np.nan, np.float32), code=spread(code, np.nan, np.float32)
        ),
        nulls=tuple(nulls),
        latent_segments=segments,
        code_clusters=Clusters(spread(index, -1, np.int32), segments.names, np.stack(centres)),
        heldout_loss=float(autoencoder.heldout_loss),
        autoencoder_notes=autoencoder.notes,
    )


def _with_baseline(result: SizeResult, config: RunConfig, progress: Progress) -> SizeResult:
    """The result with k-means on the kernels, and how far the partitions agree."""
    from dogfit.clusters import agreement, silhouette

    kernels = result.usable.kernels
    count = len(result.code_clusters.names) if result.code_clusters else KMEANS_CLUSTERS
    if len(kernels) < 2 * count:
        return result
    size = kernels.shape[-1]
    with progress.stage(f"k-means of {size}×{size} kernels", "kernels"):
        labels, centres = _kmeans(kernels, count, config.seed)
    names = []
    for cluster in range(count):
        common = Counter(result.usable.label[labels == cluster].tolist()).most_common(1)
        names.append(f"{cluster} {common[0][0]}" if common else str(cluster))
    index = np.full(len(result.own.r2), -1, np.int32)
    index[result.good] = labels
    partitions = {K_MEANS: labels, FIT_LABELS: result.usable.label}
    if result.code_clusters:
        partitions = {CODE_NAMES: result.code_clusters.index[result.good], **partitions}
    pairs = [(a, b) for i, a in enumerate(partitions) for b in list(partitions)[i + 1 :]]
    numbered = {name: np.unique(partition, return_inverse=True)[1] for name, partition in partitions.items()}
    some = _sample(len(kernels), SILHOUETTE_SAMPLE, config.seed)
    scores = {
        name: silhouette(kernels[some], given[some], seed=config.seed) for name, given in numbered.items()
    }
    return replace(
        result,
        kmeans=Clusters(index, tuple(names), normalize_kernels(centres)),
        agreement={f"{a} / {b}": agreement(numbered[a], numbered[b])._asdict() for a, b in pairs},
        silhouette={name: score for name, score in scores.items() if np.isfinite(score)},
    )


def _kmeans(
    kernels: Float[np.ndarray, "n k k"], count: int, seed: int
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "m k k"]]:
    """Cluster of each kernel and the centres, found among a sample where there are very many kernels."""
    from dogfit.clusters import kmeans

    some = _sample(len(kernels), KMEANS_SAMPLE, seed)
    found = kmeans(kernels[some], count, seed)
    centres = found.centroids.astype(np.float32)
    labels = found.labels
    if len(labels) < len(kernels):
        rows, half = kernels.reshape(len(kernels), -1), np.sum(centres**2, axis=1) / 2
        blocks = [rows[i : i + KMEANS_SAMPLE] @ centres.T - half for i in range(0, len(rows), KMEANS_SAMPLE)]
        labels = np.concatenate([np.argmax(block, axis=1) for block in blocks]).astype(np.int32)
    return labels, centres.reshape(-1, *kernels.shape[1:])


def _sample(n: int, most: int, seed: int) -> np.ndarray | slice:
    """Rows of a random sample in order, or all if they are no more than `most`."""
    return slice(None) if n <= most else np.sort(np.random.default_rng(seed).permutation(n)[:most])
