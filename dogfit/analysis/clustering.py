"""What is asked of the clusters of one size beyond naming them: universal filters, and the evidence."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from dogfit.analysis.results import (
    CODE_NAMES,
    FIT_LABELS,
    NETWORK,
    Candidates,
    FilterSearch,
    SizeResult,
    Universal,
)
from dogfit.job.config import RunConfig
from dogfit.runtime.progress import Progress
from dogfit.runtime.tasks import Rows, read_by_all, train_together
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder
    from dogfit.clusters import LatentSegments, UniversalFilters

CANDIDATES = (50, 25, 10)
"""Candidate filters decoded from evenly spaced codes, as many as in Babaiee et al. (NeurIPS 2025)."""
COUNTS = (2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
"""Numbers of clusters that are tried."""
_RANDOM_ORDERS = 5
_GAP_REFERENCES = 4


def with_universal(
    result: SizeResult,
    autoencoder: "Autoencoder | None",
    given: Float[np.ndarray, "m k k"] | None,
    config: RunConfig,
    progress: Progress,
) -> SizeResult:
    """The result with few filters that stand for all kernels, found three ways, beside two controls.

    Args:
      given: filters to compare with; those of another size are left out.
    """
    from dogfit.clusters import backward_elimination, explained_energy, forward_selection

    kernels, most = result.usable.kernels, CANDIDATES[0]
    size = kernels.shape[-1]
    if len(kernels) < 2:
        return result
    with progress.stage(f"universal {size}×{size} filters", "kernels"):
        null = result.hardest_null
        found: list[FilterSearch] = []

        def add(name: str, candidates: Candidates, chosen: "UniversalFilters") -> None:
            found.append(FilterSearch(name, candidates, chosen.filters, chosen.explained))

        add(f"forward, {NETWORK}", "network", forward_selection(kernels, most, seed=config.seed))
        add(f"forward, {null.name}", "null", forward_selection(null.kernels, most, seed=config.seed))
        if autoencoder is not None and autoencoder.config.code_dim == 1:
            decoded = {m: autoencoder.decode((np.arange(m) + 0.5) / m) for m in CANDIDATES}
            for m, candidates in decoded.items():
                if np.ptp(candidates, axis=(1, 2)).any():
                    add(f"code, {m}", "code", backward_elimination(candidates, kernels, seed=config.seed))
        rng = np.random.default_rng(config.seed)
        orders = [rng.permutation(len(kernels))[:most] for _ in range(_RANDOM_ORDERS)]
        noise = rng.standard_normal((_RANDOM_ORDERS, most, size, size))
        sample = kernels[rng.permutation(len(kernels))[:4000]]
        controls = {
            "random kernels": np.mean([_covered(kernels[order], sample) for order in orders], axis=0),
            "white noise": np.mean([_covered(filters, sample) for filters in noise], axis=0),
        }
        if given is not None and given.shape[1:] != (size, size):
            k = given.shape[1]
            progress.say(f"filters of {k}×{k} are not compared with kernels of {size}×{size}")
            given = None
        share = None if given is None else float(np.nanmean(explained_energy(given, kernels)))
    return replace(result, universal=Universal(tuple(found), controls, given, share))


def _covered(filters: np.ndarray, kernels: np.ndarray) -> Float[np.ndarray, "m"]:
    """Explained energy of the first 1, 2, ... filters, in the order given."""
    from dogfit.normalize import normalize_rows

    tried, rows = normalize_rows(filters)[0], normalize_rows(kernels)[0]
    return np.maximum.accumulate((rows @ tried.T) ** 2, axis=1).mean(axis=0)


def with_evidence(
    result: SizeResult,
    autoencoder: "Autoencoder | None",
    name: Callable[["Autoencoder"], "LatentSegments"],
    config: RunConfig,
    work: Workspace,
    progress: Progress,
) -> SizeResult:
    """The result with what can be said for and against clusters, for the network and for nulls alike.

    An autoencoder of the same settings is trained on each of two nulls, and once more on the network with
    another seed: what appears along all of their codes is the autoencoder's doing, what differs between the
    two of the network is chance.

    Args:
      name: cuts an autoencoder's code into named segments.
    """
    size = result.own.kernels.shape[-1]
    if len(result.usable.kernels) < 32:
        return result

    def make() -> bytes:
        found = _evidence(result, autoencoder, name, config, work, progress)
        return json.dumps(_plain(found)).encode()

    return replace(result, evidence=json.loads(work.stage(f"evidence-{size}.json", make)))


def _evidence(
    result: SizeResult,
    autoencoder: "Autoencoder | None",
    name: Callable[["Autoencoder"], "LatentSegments"],
    config: RunConfig,
    work: Workspace,
    progress: Progress,
) -> dict[str, Any]:
    from dogfit.clusters import agreement, gap_statistic, validate_clusters

    own = result.usable
    size, n = own.kernels.shape[-1], len(own.kernels)
    rng = np.random.default_rng(config.seed)
    sets = {own.name: own}
    for null in (result.easiest_null, result.hardest_null):
        # Nulls come in the order of layers; as many as there are kernels, so that scores can be compared.
        usable = null.select(np.isfinite(null.r2))
        sets[null.name] = usable.select(rng.permutation(len(usable.r2))[:n])
    count = len(result.code_clusters.names) if result.code_clusters else 10
    found: dict[str, Any] = {"clusters": count, "sets": {}}
    for title, scores in sets.items():
        part: dict[str, Any] = {}
        parts = {FIT_LABELS: scores.label}
        code = None
        if autoencoder is not None:
            trained = autoencoder
            if title != own.name:
                trained = _train(Rows(scores.kernels), autoencoder, config.seed, title, work, progress)
            segments = name(trained)
            code, cosine = trained.encode_and_score(scores.kernels)
            named = np.asarray(segments.names)[segments.assign(code)]
            parts = {CODE_NAMES: named, **parts}
            part["autoencoder"] = _about_code(trained, segments, named, cosine)
            if title == own.name:
                rows = read_by_all(scores.kernels, result.good)
                again = _train(rows, trained, config.seed + 1, "network again", work, progress)
                other = name(again)
                renamed = np.asarray(other.names)[other.assign(again.encode(scores.kernels))]
                part["autoencoder"]["retrained"] = {
                    "heldout_dissimilarity": float(again.heldout_loss),
                    **agreement(named, renamed)._asdict(),
                }
        with progress.stage(f"evidence for {size}×{size} clusters, {title}", "kernels"):
            evidence = validate_clusters(
                scores.kernels, code, clusters=count, given=parts, counts=COUNTS, seed=config.seed
            )
        part["kernels"] = evidence.kernels
        part["scores"] = [asdict(score) for score in evidence.scores]
        part["curves"] = [{**asdict(curve), "supported": curve.supported} for curve in evidence.curves]
        found["sets"][title] = part
    null = result.hardest_null
    order = rng.permutation(len(null.kernels))
    references = [null.kernels[rows] for rows in np.array_split(order, _GAP_REFERENCES)]
    counts = [k for k in (1, *COUNTS) if k < min(n, len(references[-1])) / 4]
    if len(counts) > 1:
        with progress.stage(f"gap statistic of {size}×{size} kernels", "kernels"):
            gap = gap_statistic(own.kernels, references, counts=counts, seed=config.seed)
        found["gap"] = {**asdict(gap), "supported": gap.supported, "reference": null.name}
    return found


def _about_code(
    trained: "Autoencoder", segments: "LatentSegments", named: np.ndarray, cosine: np.ndarray
) -> dict[str, Any]:
    """What an autoencoder makes of the kernels it was trained on."""
    from dogfit.clusters import UNNAMED, paper_dissimilarity

    return {
        "heldout_dissimilarity": float(trained.heldout_loss),
        "segments": len(segments.segments),
        "names": len([name for name in segments.names if name != UNNAMED]),
        "named": float(np.mean(named != UNNAMED)),
        "classified": float(np.mean(cosine > 1 - paper_dissimilarity(trained.size))),
    }


def _train(
    rows: Rows, like: "Autoencoder", seed: int, title: str, work: Workspace, progress: Progress
) -> "Autoencoder":
    """An autoencoder of the same settings on other kernels, or from another seed; kept between runs."""
    from dogfit.autoencoder import Autoencoder

    size = like.size
    with work.stage_folder(f"evidence-{size}-{title.replace(' ', '-')}") as (folder, finished):
        if finished:
            return Autoencoder.load(folder)
        shutil.rmtree(folder, ignore_errors=True)
        with progress.stage(f"train {size}×{size} autoencoder, {title}", "steps") as update:
            trained = train_together(rows, replace(like.config, seed=seed), work.hidden, progress=update)
        trained.save(folder)
    return trained


def _plain(value: Any) -> Any:
    """For JSON: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
