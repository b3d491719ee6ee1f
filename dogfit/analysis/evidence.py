"""Evidence for and against clusters among the kernels of one size, beside that of nulls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dogfit.analysis.clustering import KMEANS_CLUSTERS
from dogfit.analysis.latent_code import Namer, train_or_load
from dogfit.analysis.results import CODE_NAMES, FIT_LABELS, NETWORK, Scores, SizeResult
from dogfit.runtime.keys import make_key
from dogfit.runtime.progress import Progress
from dogfit.runtime.tasks import Rows, already_sharded
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder
    from dogfit.clusters import LatentSegments

COUNTS = (2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
"""Numbers of clusters that are tried."""
MIN_KERNELS = 32
_GAP_REFERENCES = 4


def add_evidence(
    result: SizeResult,
    autoencoder: "Autoencoder | None",
    name: Namer,
    depends_on: Sequence[Any],
    seed: int,
    work: Workspace,
    progress: Progress,
    counts: Sequence[int] = COUNTS,
) -> SizeResult:
    """Add what can be said for and against clusters, of the network and of nulls alike.

    An autoencoder with the same settings is trained on each of two nulls, and once more on the network with
    another seed: what appears along all of their codes comes from the autoencoder, what differs between the
    two of the network is chance.

    Args:
      result: with fits, nulls, and the clusters of a code if there is one.
      autoencoder: of these kernels, or None.
      name: cuts an autoencoder's code into named segments.
      depends_on: what the names depend on besides the autoencoder.
      seed: of samples, starts and trainings.
      work: where the evidence is kept.
      progress: shown while it is gathered.
      counts: numbers of clusters to try.

    Returns:
      The result with evidence; unchanged with fewer than 32 kernels.
    """
    if len(result.usable.kernels) < MIN_KERNELS:
        return result
    size = result.own.kernels.shape[-1]
    sets = {scores.name: scores for scores in (result.usable, result.easiest_null, result.hardest_null)}
    contents = [(title, scores.label.tolist()) for title, scores in sets.items()]
    key = make_key(
        "evidence",
        contents,
        *(array for scores in sets.values() for array in (scores.kernels, scores.r2)),
        "no code" if autoencoder is None else autoencoder.to_bytes(),
        None if result.code_clusters is None else len(result.code_clusters.names),
        *depends_on,
        seed,
        list(counts),
    )
    gather = _Evidence(result, autoencoder, name, seed, work, progress, counts)
    return replace(result, evidence=work.json_stage(f"evidence-{size}", key, lambda: plain(gather.all())))


class _Evidence:
    """Evidence of one kernel size as it is gathered, with one stream of random numbers."""

    def __init__(
        self,
        result: SizeResult,
        autoencoder: "Autoencoder | None",
        name: Namer,
        seed: int,
        work: Workspace,
        progress: Progress,
        counts: Sequence[int],
    ) -> None:
        self.result, self.autoencoder, self.name = result, autoencoder, name
        self.seed, self.work, self.progress, self.counts = seed, work, progress, counts
        self.size = result.own.kernels.shape[-1]
        self.rng = np.random.default_rng(seed)
        self.clusters = len(result.code_clusters.names) if result.code_clusters else KMEANS_CLUSTERS

    def all(self) -> dict[str, Any]:
        """Gather the evidence of the network, of the easiest and of the hardest null."""
        own = self.result.usable
        sets = {NETWORK: own}
        for null in (self.result.easiest_null, self.result.hardest_null):
            # Nulls come in the order of layers; as many as there are kernels, so that scores can be compared.
            usable = null.select(np.isfinite(null.r2))
            sets[null.name] = usable.select(self.rng.permutation(len(usable.r2))[: len(own.kernels)])
        found: dict[str, Any] = {
            "clusters": self.clusters,
            "sets": {title: self.of_set(title, scores) for title, scores in sets.items()},
        }
        if (gap := self.gap()) is not None:
            found["gap"] = gap
        return found

    def of_set(self, title: str, scores: Scores) -> dict[str, Any]:
        """Gather the evidence of one set of kernels."""
        from dogfit.clusters import validate_clusters

        part: dict[str, Any] = {}
        partitions = {FIT_LABELS: scores.label}
        code = None
        if self.autoencoder is not None:
            part["autoencoder"], code, named = self.of_code(title, scores, self.autoencoder)
            partitions = {CODE_NAMES: named, **partitions}
        with self.progress.stage(f"evidence for {self.size}×{self.size} clusters, {title}", "kernels"):
            evidence = validate_clusters(
                scores.kernels,
                code,
                clusters=self.clusters,
                given=partitions,
                counts=self.counts,
                seed=self.seed,
            )
        part["kernels"] = evidence.kernels
        part["scores"] = [asdict(score) for score in evidence.scores]
        part["curves"] = [{**asdict(curve), "supported": curve.supported} for curve in evidence.curves]
        return part

    def of_code(
        self, title: str, scores: Scores, autoencoder: "Autoencoder"
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Describe an autoencoder trained on one set of kernels; also their codes and names along it."""
        from dogfit.clusters import agreement

        trained = autoencoder
        if title != NETWORK:
            trained = self.train(Rows(scores.kernels), autoencoder, self.seed, title)
        segments = self.name(trained)
        code, cosine = trained.encode_and_score(scores.kernels)
        named = np.asarray(segments.names)[segments.assign(code)]
        part = _describe_code(trained, segments, named, cosine)
        if title == NETWORK:
            rows = already_sharded(scores.kernels, self.result.good)
            again = self.train(rows, trained, self.seed + 1, f"{NETWORK} again")
            other = self.name(again)
            renamed = np.asarray(other.names)[other.assign(again.encode(scores.kernels))]
            part["retrained"] = {
                "heldout_dissimilarity": float(again.heldout_loss),
                **agreement(named, renamed)._asdict(),
            }
        return part, code, named

    def train(self, rows: Rows, like: "Autoencoder", seed: int, title: str) -> "Autoencoder":
        """Train an autoencoder with the same settings on other kernels, or from another seed."""
        return train_or_load(
            f"evidence-{self.size}-{title.replace(' ', '-')}",
            rows,
            replace(like.config, seed=seed),
            self.work,
            self.progress,
            title=f"train {self.size}×{self.size} autoencoder, {title}",
        )

    def gap(self) -> dict[str, Any] | None:
        """Compute the gap statistic against the hardest null, where there are kernels enough."""
        from dogfit.clusters import gap_statistic

        kernels, null = self.result.usable.kernels, self.result.hardest_null
        order = self.rng.permutation(len(null.kernels))
        references = [null.kernels[rows] for rows in np.array_split(order, _GAP_REFERENCES)]
        counts = [k for k in (1, *self.counts) if k < min(len(kernels), len(references[-1])) / 4]
        if len(counts) < 2:
            return None
        with self.progress.stage(f"gap statistic of {self.size}×{self.size} kernels", "kernels"):
            gap = gap_statistic(kernels, references, counts=counts, seed=self.seed)
        return {**asdict(gap), "supported": gap.supported, "reference": null.name}


def _describe_code(
    trained: "Autoencoder", segments: "LatentSegments", named: np.ndarray, cosine: np.ndarray
) -> dict[str, Any]:
    """Describe an autoencoder by the kernels it was trained on."""
    from dogfit.clusters import UNNAMED, paper_dissimilarity

    return {
        "heldout_dissimilarity": float(trained.heldout_loss),
        "segments": len(segments.segments),
        "names": len([name for name in segments.names if name != UNNAMED]),
        "named": float(np.mean(named != UNNAMED)),
        "classified": float(np.mean(cosine > 1 - paper_dissimilarity(trained.size))),
    }


def plain(value: Any) -> Any:
    """Make plain data for JSON: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
