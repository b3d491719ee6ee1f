"""Named clusters along a code, how far they can be trusted, and the few filters that stand for all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogfit.clusters.label_statistics import (
        Distance,
        Interval,
        Outlier,
        TrainingRun,
        label_shares,
        outlying_shares,
        share_distance,
        share_intervals,
        training_runs,
    )
    from dogfit.clusters.latent_segments import (
        UNNAMED,
        LatentSegments,
        Segment,
        merge_short_runs,
        segment_code,
    )
    from dogfit.clusters.paper_criteria import (
        PAPER_DISSIMILARITY,
        PAPER_PATTERNS,
        paper_dissimilarity,
        paper_pattern,
        paper_r2,
        paper_share,
        share_above,
        threshold_curve,
    )
    from dogfit.clusters.partitions import (
        Agreement,
        KMeans,
        Mixture,
        agreement,
        kmeans,
        mixture,
        representations,
        silhouette,
        stability,
    )
    from dogfit.clusters.universal_filters import (
        Matches,
        UniversalFilters,
        backward_elimination,
        elbow,
        explained_energy,
        forward_selection,
        match_filters,
        read_filters,
    )
    from dogfit.clusters.validation import (
        ClusterValidation,
        CountCurve,
        Gap,
        PartitionScore,
        gap_statistic,
        validate_clusters,
    )

# Public names and where they live; loaded on first use.
_HOME = {
    "Distance": "dogfit.clusters.label_statistics",
    "Interval": "dogfit.clusters.label_statistics",
    "Outlier": "dogfit.clusters.label_statistics",
    "TrainingRun": "dogfit.clusters.label_statistics",
    "label_shares": "dogfit.clusters.label_statistics",
    "outlying_shares": "dogfit.clusters.label_statistics",
    "share_distance": "dogfit.clusters.label_statistics",
    "share_intervals": "dogfit.clusters.label_statistics",
    "training_runs": "dogfit.clusters.label_statistics",
    "UNNAMED": "dogfit.clusters.latent_segments",
    "LatentSegments": "dogfit.clusters.latent_segments",
    "Segment": "dogfit.clusters.latent_segments",
    "merge_short_runs": "dogfit.clusters.latent_segments",
    "segment_code": "dogfit.clusters.latent_segments",
    "PAPER_DISSIMILARITY": "dogfit.clusters.paper_criteria",
    "PAPER_PATTERNS": "dogfit.clusters.paper_criteria",
    "paper_dissimilarity": "dogfit.clusters.paper_criteria",
    "paper_pattern": "dogfit.clusters.paper_criteria",
    "paper_r2": "dogfit.clusters.paper_criteria",
    "paper_share": "dogfit.clusters.paper_criteria",
    "share_above": "dogfit.clusters.paper_criteria",
    "threshold_curve": "dogfit.clusters.paper_criteria",
    "Agreement": "dogfit.clusters.partitions",
    "KMeans": "dogfit.clusters.partitions",
    "Mixture": "dogfit.clusters.partitions",
    "agreement": "dogfit.clusters.partitions",
    "kmeans": "dogfit.clusters.partitions",
    "mixture": "dogfit.clusters.partitions",
    "representations": "dogfit.clusters.partitions",
    "silhouette": "dogfit.clusters.partitions",
    "stability": "dogfit.clusters.partitions",
    "Matches": "dogfit.clusters.universal_filters",
    "UniversalFilters": "dogfit.clusters.universal_filters",
    "backward_elimination": "dogfit.clusters.universal_filters",
    "elbow": "dogfit.clusters.universal_filters",
    "explained_energy": "dogfit.clusters.universal_filters",
    "forward_selection": "dogfit.clusters.universal_filters",
    "match_filters": "dogfit.clusters.universal_filters",
    "read_filters": "dogfit.clusters.universal_filters",
    "ClusterValidation": "dogfit.clusters.validation",
    "CountCurve": "dogfit.clusters.validation",
    "Gap": "dogfit.clusters.validation",
    "PartitionScore": "dogfit.clusters.validation",
    "gap_statistic": "dogfit.clusters.validation",
    "validate_clusters": "dogfit.clusters.validation",
}
__all__ = [
    "PAPER_DISSIMILARITY",
    "PAPER_PATTERNS",
    "UNNAMED",
    "Agreement",
    "ClusterValidation",
    "CountCurve",
    "Distance",
    "Gap",
    "Interval",
    "KMeans",
    "LatentSegments",
    "Matches",
    "Mixture",
    "Outlier",
    "PartitionScore",
    "Segment",
    "TrainingRun",
    "UniversalFilters",
    "agreement",
    "backward_elimination",
    "elbow",
    "explained_energy",
    "forward_selection",
    "gap_statistic",
    "kmeans",
    "label_shares",
    "match_filters",
    "merge_short_runs",
    "mixture",
    "outlying_shares",
    "paper_dissimilarity",
    "paper_pattern",
    "paper_r2",
    "paper_share",
    "read_filters",
    "representations",
    "segment_code",
    "share_above",
    "share_distance",
    "share_intervals",
    "silhouette",
    "stability",
    "threshold_curve",
    "training_runs",
    "validate_clusters",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
