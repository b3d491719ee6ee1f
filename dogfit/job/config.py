"""Options of the command. Light to import: the command line is read before anything else is loaded."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from dogfit.autoencoder.config import AutoencoderConfig
from dogfit.errors import InputError
from dogfit.fitting.config import Criterion, Profile
from dogfit.fitting.family_names import ALL_FAMILIES, FAMILIES

if TYPE_CHECKING:
    from dogfit.analysis.config import AnalysisConfig

# Settings with other values make it another run; those of the summary are recomputed in place.
_INPUT_SETTINGS = ("sizes", "families", "profile", "criterion", "seed", "steps", "no_autoencoder")
_SUMMARY_SETTINGS = ("null_rate", "evidence")
# Named by the summary and counted in keys where they are given.
_OPTIONAL_SETTINGS = ("null_kernels", "training")


def _listed(metavar: str, item: type) -> PrimitiveConstructorSpec:
    """Read a comma-separated list from one word, so that it never takes a SOURCE after it for an item."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: tuple(item(part.strip()) for part in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) or "all"],
    )


@dataclass(frozen=True)
class RunConfig:
    """Fit every depthwise kernel of a trained network, and compare the fits with those of null kernels."""

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[SOURCE ...]")] = ()
    """A .safetensors file, a folder that holds one, or a hub repository owner/name[@revision].
    Several are compared. Without one, the small network that comes with dogfit is used."""

    out: Path = Path("dogfit-out")
    """Folder for the results. Its hidden folder .dogfit keeps completed stages: an interrupted run resumes
    there, and another --null-rate, --evidence or --filters recomputes only what it changes."""

    sizes: Annotated[tuple[int, ...], _listed("K[,K...]", int)] = ()
    """Kernel sizes to analyze."""

    families: Annotated[tuple[str, ...], _listed("NAME[,NAME...]", str)] = FAMILIES
    """Model families to fit: gaussian, dog, d1, d2, dog_d1, dog_d2, and each of these with _elliptic."""

    profile: Profile = "integrated"
    """How functions become taps: integrals over each tap, values at its center, or discrete Gaussians."""

    criterion: Criterion = "bic"
    """How a family is chosen: BIC, AICc, or cross-validation over taps."""

    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of the nulls, the autoencoder and k-means."""

    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 800)")] = None
    """Training steps of the autoencoder."""

    training: Annotated[str | None, tyro.conf.arg(metavar="JSON", help_behavior_hint="(default: none)")] = (
        None
    )
    """Other settings of the training, as a JSON object of fields of AutoencoderConfig: '{"restarts": 5}'."""

    null_rate: Annotated[float, tyro.conf.arg(metavar="RATE")] = 0.01
    """Fraction of each null that passes its threshold."""

    null_kernels: Annotated[
        tuple[int, ...],
        _listed("MIN,MAX", int),
        tyro.conf.arg(help_behavior_hint="(default: 8192,32768)"),
    ] = ()
    """Fewest and most kernels of each null. Between these, as many are drawn as the network has."""

    autoencoder: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: train one)")
    ] = None
    """Use the autoencoder in this file, or those in this results folder, so that codes and clusters of
    several runs are comparable. Kernel sizes for which PATH has none get a new one."""

    no_autoencoder: bool = False
    """Skip the autoencoder; kernels are then clustered by k-means alone."""

    replace: Literal["fits", "universal", "autoencoder"] | None = None
    """Also write replaced.safetensors, the checkpoint with its kernels replaced by their fits, by the nearest
    of 8 universal filters, or by their reconstructions."""

    replace_r2: Annotated[float, tyro.conf.arg(metavar="R2")] = 0.0
    """Keep the original kernel where the replacement explains less than this."""

    evidence: bool = False
    """Test whether there are clusters at all: k-means and mixtures of kernels, PCA and code, their stability,
    and the same for nulls with autoencoders of their own. Takes minutes."""

    filters: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = (
        None
    )
    """Filters to compare the universal ones with: JSON, [m, k, k] or an object with "filters"; or .npy."""

    no_figures: bool = False
    """Skip the figures, which take a good part of the time for a small network."""

    include: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """Also read tensors whose name matches, such as 'stem.*', where dogfit leaves them out as ambiguous."""

    exclude: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """Leave out tensors whose name matches."""

    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT|auto", help_behavior_hint="(default: one process)")
    ] = None
    """Share the work with other processes that are started with the same command. Give the address of process
    0 and a free port there, or auto under SLURM, Open MPI, Kubernetes and on TPU pods. Process 0 writes."""

    processes: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(with auto: found)")] = (
        None
    )
    """Number of processes."""

    process_id: Annotated[int | None, tyro.conf.arg(metavar="I", help_behavior_hint="(with auto: found)")] = (
        None
    )
    """Number of this process, from 0."""

    lost_after: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 60
    """Seconds of silence after which a process counts as lost. The others then end, and the same command
    resumes the job."""

    overwrite: bool = False
    """Replace the results of another run in the same folder, and compute every stage again."""

    offline: bool = False
    """Use local files and the local hub cache only."""

    quiet: bool = False
    """Print nothing but errors."""

    json: bool = False
    """Print the summary as JSON on standard output, and nothing else there."""

    version: bool = False
    """Print the version and exit."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.families if name not in ALL_FAMILIES]:
            raise ValueError(f"no family is called {unknown[0]!r}; choose from {', '.join(ALL_FAMILIES)}")
        if len(set(self.families)) != len(self.families):
            raise ValueError(f"--families names a family twice: {','.join(self.families)}")
        if small := [size for size in self.sizes if size < 2]:
            raise ValueError(f"--sizes are kernel widths in taps, at least 2; got {small[0]}")
        if not 0 <= self.null_rate < 1:
            raise ValueError(f"--null-rate is a fraction, at least 0 and below 1; got {self.null_rate}")
        if (given := self.null_kernels) and (len(given) != 2 or not 2 <= given[0] <= given[1]):
            words = ",".join(map(str, given))
            raise ValueError(f"--null-kernels is MIN,MAX with 2 <= MIN <= MAX; got {words}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        if not self.replace_r2 <= 1:
            raise ValueError(
                f"--replace-r2 is a fraction of a kernel's energy, at most 1; got {self.replace_r2}"
            )
        self._check_autoencoder()
        self._check_processes()

    def _check_autoencoder(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be 1 or more, got {self.steps}; --no-autoencoder skips training")
        if self.autoencoder is not None and self.no_autoencoder:
            raise ValueError("--autoencoder PATH and --no-autoencoder exclude each other; give one of them")
        if self.replace in ("universal", "autoencoder") and self.no_autoencoder:
            raise ValueError(f"--replace {self.replace} needs the autoencoder; leave out --no-autoencoder")
        self.autoencoder_config()

    def _check_processes(self) -> None:
        count, index = self.processes, self.process_id
        if self.coordinator is None:
            if (count, index) != (None, None):
                raise ValueError("--processes and --process-id need --coordinator HOST:PORT")
            return
        if self.coordinator != "auto":
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 65536):
                raise ValueError(f"--coordinator is HOST:PORT, or auto; got {self.coordinator}")
            if count is None or index is None:
                raise ValueError("--coordinator HOST:PORT needs --processes N and --process-id I")
        if count is not None and count < 1:
            raise ValueError(f"--processes must be 1 or more, got {count}")
        if index is not None and not 0 <= index < (count or index + 1):
            raise ValueError(f"--process-id counts from 0 to {(count or 1) - 1}, got {index}")
        if self.lost_after < 1:
            raise ValueError(f"--lost-after must be 1 second or more, got {self.lost_after}")

    def autoencoder_config(self) -> AutoencoderConfig | None:
        """Collect the settings of the autoencoder's training.

        Returns:
          The settings, or None if the autoencoder is left out.

        Raises:
          ValueError: `--training` is no JSON object of such settings.
        """
        if self.no_autoencoder:
            return None
        settings: Any = json.loads(self.training or "{}") if _is_json(self.training) else None
        if not isinstance(settings, dict) or "seed" in settings:
            raise ValueError(
                f"--training is a JSON object of fields of AutoencoderConfig but seed; got {self.training}"
            )
        settings["seed"] = self.seed
        if self.steps is not None:
            settings["steps"] = self.steps
        try:
            return AutoencoderConfig.from_json(settings)
        except TypeError as error:
            raise ValueError(f"--training names no field of AutoencoderConfig: {error}") from error

    def analysis_config(self) -> "AnalysisConfig":
        """Collect the settings of the analysis.

        Returns:
          The settings of every kernel size.

        Raises:
          InputError: the file of `--filters` cannot be used.
        """
        from dogfit.analysis.config import NULL_KERNELS, AnalysisConfig
        from dogfit.clusters import read_filters
        from dogfit.fitting.config import FitConfig

        return AnalysisConfig(
            families=self.families,
            fit=FitConfig(profile=self.profile, criterion=self.criterion),
            autoencoder=self.autoencoder_config(),
            seed=self.seed,
            null_rate=self.null_rate,
            null_kernels=(self.null_kernels[0], self.null_kernels[1]) if self.null_kernels else NULL_KERNELS,
            filters=None if self.filters is None else read_filters(self.filters),
            evidence=self.evidence,
        )

    def source_paths(self) -> tuple[str | Path, ...]:
        """List the checkpoints to read: those named, or the network that comes with dogfit."""
        if self.sources:
            return self.sources
        from dogfit.embedded import PATH

        return (PATH,)

    def input_settings(self) -> dict[str, Any]:
        """Collect the settings that make it another run, whose results are not replaced unless asked."""
        return self._settings(_INPUT_SETTINGS)

    def result_settings(self) -> dict[str, Any]:
        """Collect the settings that the numbers depend on. Files count by content, not by path."""
        settings = self._settings((*_INPUT_SETTINGS, *_SUMMARY_SETTINGS))
        if self.filters is not None:
            settings["filters"] = _content(self.filters)
        return settings

    def _settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        values = asdict(self)
        given = [name for name in _OPTIONAL_SETTINGS if values[name]]
        return {name: value for name, value in values.items() if name in (*names, *given)}


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "{}")
    except ValueError:
        return False
    return True


def _content(path: Path) -> str:
    """Digest a file's content."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
