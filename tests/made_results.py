"""Results of a run made by hand, for tests of what is written about them."""

from dataclasses import asdict, replace

import numpy as np
import polars as pl

from dogfit.analysis.evidence import plain
from dogfit.analysis.results import Clusters, FilterSearch, RunResult, Scores, SizeResult, Universal
from dogfit.clusters import LatentSegments, Segment, validate_clusters
from dogfit.kernelset import Flag, KernelSet, Layer
from dogfit.labels import LABELS

HOSTILE = "<script>alert('$x_1$')</script>\u202e日本"
K = 5
SHOWN = LABELS[:3]
SETTINGS = {
    "seed": 0,
    "families": ["dog", "d1"],
    "profile": "integrated",
    "criterion": "bic",
    "null_rate": 0.1,
}


def unit(kernels: np.ndarray) -> np.ndarray:
    centred = kernels - kernels.mean((1, 2), keepdims=True)
    return (centred / np.linalg.norm(centred, axis=(1, 2), keepdims=True)).astype(np.float32)


def universal(filters: np.ndarray) -> Universal:
    ways = {"forward, network": "network", "forward, covariance-matched": "null", "code, 6": "code"}
    rising = np.linspace(0.3, 0.8, len(filters))
    found = [FilterSearch(name, candidates, filters, rising) for name, candidates in ways.items()]
    return Universal(tuple(found), {"white noise": np.linspace(0.1, 0.2, 6)}, 2 * filters[:3], 0.5)


def evidence(kernels: np.ndarray, code: np.ndarray) -> dict:
    """As `with_evidence` leaves it; its sets are all the same here."""
    given = {"name along the code": np.floor(3 * code), "label of the fit": np.arange(len(code)) % 2}
    made = validate_clusters(kernels, code, clusters=3, given=given, counts=(2, 3), repeats=2)
    trained = {"heldout_dissimilarity": 0.3, "segments": 5, "names": 3, "named": 0.9, "classified": 0.6}
    part = {
        "autoencoder": {**trained, "retrained": {"heldout_dissimilarity": 0.3, "ari": 0.5, "nmi": 0.6}},
        "kernels": made.kernels,
        "scores": [asdict(score) for score in made.scores],
        "curves": [{**asdict(curve), "supported": curve.supported} for curve in made.curves],
    }
    gap = {"counts": [1, 2], "gap": [0.0, 0.1], "error": [0.01, 0.01], "supported": 2, "reference": "null"}
    sets = dict.fromkeys(("network", "white noise", "covariance-matched"), part)
    return plain({"clusters": 3, "sets": sets, "gap": gap})


def make_result(
    names: tuple[str, ...],
    *,
    coded: bool = True,
    models: tuple[str, ...] = ("net0", "net1"),
    evident: bool = False,
) -> RunResult:
    """A run over layers of 12 kernels, given to the models in turn. The last kernel is NaN."""
    generator = np.random.default_rng(0)
    pairs = []
    for place, name in enumerate(names):
        taps = generator.standard_normal((12, K, K)).astype(np.float32)
        model, turn = models[place % len(models)], place // len(models)
        pairs.append((Layer(name, model, turn, turn, 0, K, 12, "F32"), taps))
    pairs[-1][1][-1] = np.nan
    kernelset = KernelSet.from_layers(pairs, notes=["net0: 2 left out: quantised"])
    group = kernelset.groups[K]
    n = len(group.kernels)
    r2 = generator.uniform(0.3, 1, n).astype(np.float32)
    r2[-1] = np.nan
    label = generator.choice(SHOWN, n)
    label[-1] = "unfitted"
    frame = pl.DataFrame(
        {
            "family": pl.Series([*generator.choice(["dog", "d1"], n - 1).tolist(), None], dtype=pl.String),
            "r2": r2,
            "label": label.tolist(),
        }
    )
    cosine = generator.uniform(0.5, 1, n).astype(np.float32)
    cosine[-1] = np.nan
    own = Scores("network", group.normalized(), group.layer, r2, label, cosine if coded else None)
    layers = {"white noise": np.full(40, -1), "covariance-matched": np.repeat(np.arange(len(names)), 10)}
    nulls = []
    for name, layer in layers.items():
        m = len(layer)
        null = Scores(
            name,
            unit(generator.standard_normal((m, K, K))),
            layer.astype(np.int32),
            generator.uniform(0, 0.9, m).astype(np.float32),
            generator.choice(SHOWN, m),
            generator.uniform(0, 1, m).astype(np.float32) if coded else None,
            generator.uniform(0, 1, m).astype(np.float32) if coded else None,
            difficulty=len(nulls),
        )
        nulls.append(null)
    found = SizeResult(
        own=own,
        good=group.flag == Flag.OK,
        nulls=tuple(nulls),
        null_rate=0.1,
        fits=frame,
        templates=np.where(np.isfinite(r2)[:, None, None], 0.5 * group.kernels, np.nan).astype(np.float32),
        families=("dog", "d1"),
        unidentifiable={"d2": "as many parameters as taps"},
        kmeans=Clusters(
            np.where(group.flag == Flag.OK, np.arange(n) % 2, -1), ("0 a", "1 b"), own.kernels[:2]
        ),
        agreement={"k-means / label of the fit": {"ari": 0.1, "nmi": 0.2}},
        no_autoencoder=None if coded else "left out on request",
    )
    if coded:
        code = np.where(group.flag == Flag.OK, generator.uniform(0, 1, n), np.nan).astype(np.float32)
        samples = np.linspace(0, 1, 64)
        segments = tuple(Segment(i / 3, (i + 1) / 3, SHOWN[i]) for i in range(3))
        drawn = unit(generator.standard_normal((64, K, K)))
        latent = LatentSegments(samples, drawn, np.repeat(SHOWN[0], 64), samples, segments)
        names_of = Clusters(latent.assign(code), latent.names, drawn[:3])
        found = replace(
            found,
            own=replace(own, code=code),
            latent_segments=latent,
            code_clusters=names_of,
            heldout_loss=0.25,
            universal=universal(unit(generator.standard_normal((6, K, K)))),
            evidence=evidence(own.kernels[found.good], code[found.good]) if evident else None,
        )
    return RunResult(kernelset, {K: found}, SETTINGS)
