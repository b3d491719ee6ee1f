"""All findings about the kernels of one size: fits, nulls, autoencoder, clusters."""

from dataclasses import replace
from typing import TYPE_CHECKING

from dogfit.analysis.clustering import add_kmeans, add_universal_filters
from dogfit.analysis.config import AnalysisConfig
from dogfit.analysis.evidence import add_evidence
from dogfit.analysis.fits import draw_nulls, fit_network, fit_null, null_scores
from dogfit.analysis.latent_code import place_on_code, segment_namer, train_or_load
from dogfit.analysis.results import NETWORK, SizeResult
from dogfit.errors import TooFewKernels
from dogfit.kernelset.groups import Flag, KernelGroup
from dogfit.runtime.progress import Progress
from dogfit.runtime.tasks import already_sharded
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig

_GIVEN = "given with --autoencoder: trained before, not on these kernels alone"


def analyze_size(
    group: KernelGroup,
    config: AnalysisConfig,
    work: Workspace,
    progress: Progress,
    given: "Autoencoder | None" = None,
) -> tuple[SizeResult, "Autoencoder | None"]:
    """Fit kernels and nulls of one size, train an autoencoder on them, and find their clusters.

    Args:
      group: the kernels.
      config: of every step.
      work: where stages are kept. Those that an earlier run made under the same key are read, not made again.
      progress: shown.
      given: an autoencoder to use instead of training one.

    Returns:
      The findings, and the autoencoder that was given or trained, if any.
    """
    result = _fitted(group, config, work, progress)
    autoencoder = None
    if config.autoencoder is None:
        result = replace(result, no_autoencoder="left out on request")
    else:
        try:
            autoencoder = given or _train(result, config.autoencoder, work, progress)
        except TooFewKernels as error:
            result = replace(result, no_autoencoder=str(error))
    name = segment_namer(config.families, config.fit)
    naming = (list(config.families), config.fit)
    if autoencoder is not None:
        result = place_on_code(result, autoencoder, name, naming, work, progress)
        if given is not None:
            result = replace(result, autoencoder_notes=(_GIVEN, *result.autoencoder_notes))
    result = add_kmeans(result, config.seed, work, progress)
    result = add_universal_filters(result, autoencoder, config.filters, config.seed, work, progress)
    if config.evidence:
        result = add_evidence(result, autoencoder, name, naming, config.seed, work, progress)
    return result, autoencoder


def _fitted(group: KernelGroup, config: AnalysisConfig, work: Workspace, progress: Progress) -> SizeResult:
    fits = fit_network(group, config.families, config.fit, work, progress)
    nulls = tuple(
        null_scores(null, fit_null(null, config.families, config.fit, work, progress))
        for null in draw_nulls(group, config.seed, config.null_kernels)
    )
    return SizeResult(
        own=fits.scores(NETWORK, group.normalized(), group.layer),
        good=group.flag == Flag.OK,
        nulls=nulls,
        null_rate=config.null_rate,
        fits=fits.frame,
        templates=fits.templates,
        families=fits.families,
        unidentifiable=fits.unidentifiable,
    )


def _train(
    result: SizeResult, config: "AutoencoderConfig", work: Workspace, progress: Progress
) -> "Autoencoder":
    size = result.own.kernels.shape[-1]
    rows = already_sharded(result.usable.kernels, result.good)
    title = f"train {size}×{size} autoencoder"
    return train_or_load(f"autoencoder-{size}", rows, config, work, progress, title=title, checkpoints=True)
