"""What a person may ask of the main job. Light to import: the command line is read before the rest."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from dogfit.errors import InputError
from dogfit.fitting.family_names import ALL_FAMILIES, FAMILIES


def _listed(metavar: str, item: type) -> PrimitiveConstructorSpec:
    """One command-line word holding a comma-separated list, so that it never swallows a SOURCE after it."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: tuple(item(part.strip()) for part in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) or "all"],
    )


@dataclass(frozen=True)
class RunConfig:
    """Say what each depthwise kernel of a trained network is, how well that fits, and how sure one may be."""

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[SOURCE ...]")] = ()
    """A .safetensors file, a folder that holds one, or a hub repository owner/name[@revision].
    Several are compared. None: the small network that comes with dogfit."""

    out: Path = Path("dogfit-out")
    """Folder for the results. An interrupted run continues there."""

    sizes: Annotated[tuple[int, ...], _listed("K[,K...]", int)] = ()
    """Kernel sizes to look at."""

    families: Annotated[tuple[str, ...], _listed("NAME[,NAME...]", str)] = FAMILIES
    """Model families to fit, out of gaussian, dog, d1, d2, dog_d1, dog_d2, and each with _elliptic."""

    profile: Literal["integrated", "sampled", "discrete"] = "integrated"
    """How functions become taps: integrals over them, values at their centres, or discrete Gaussians."""

    criterion: Literal["bic", "aicc", "cv"] = "bic"
    """What chooses among families: BIC, AICc, or taps predicted from all others."""

    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of the nulls, the autoencoder and k-means."""

    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 800)")] = None
    """Training steps of the autoencoder."""

    null_rate: Annotated[float, tyro.conf.arg(metavar="RATE")] = 0.01
    """Share of each null that its threshold lets pass."""

    autoencoder: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: train one)")
    ] = None
    """Use the autoencoder in this file, or those in this results folder, so that codes and clusters are
    comparable between runs. Kernel sizes that PATH has none for get one trained."""

    no_autoencoder: bool = False
    """Leave out the autoencoder; kernels are then grouped by k-means alone."""

    replace: Literal["fits", "universal", "autoencoder"] | None = None
    """Also write the checkpoint with its kernels replaced by their fits, by the nearest of 8 universal
    filters, or by what the autoencoder makes of them: replaced.safetensors."""

    replace_r2: Annotated[float, tyro.conf.arg(metavar="R2")] = 0.0
    """Kernels whose replacement explains less than this keep their own taps there."""

    evidence: bool = False
    """Ask whether there are clusters at all: k-means and mixtures of kernels, PCA and code, their stability,
    and the same for nulls, with autoencoders of their own. Takes minutes."""

    filters: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = (
        None
    )
    """Filters to compare the universal ones with: JSON, [m, k, k] or an object with "filters"; or .npy."""

    include: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """Also take tensors whose name matches, such as 'stem.*', where dogfit leaves them out as ambiguous."""

    exclude: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    """Leave out tensors whose name matches."""

    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT|auto", help_behavior_hint="(default: one process)")
    ] = None
    """Share the work with other processes, started with the same command: address of process 0 and a free
    port there, or auto under SLURM, Open MPI, Kubernetes and on TPU pods. Process 0 writes the results."""

    processes: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(with auto: found)")] = (
        None
    )
    """Number of processes."""

    process_id: Annotated[int | None, tyro.conf.arg(metavar="I", help_behavior_hint="(with auto: found)")] = (
        None
    )
    """Which of them this is, from 0."""

    lost_after: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 60
    """A process that is silent for so long is lost; the others then end, and the same command goes on."""

    overwrite: bool = False
    """Replace the results of another run in the same folder."""

    offline: bool = False
    """Use local files and the local hub cache only."""

    quiet: bool = False
    """Print nothing but errors."""

    json: bool = False
    """Print the summary as JSON, and nothing else, on standard output."""

    version: bool = False
    """Print the version and leave."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.families if name not in ALL_FAMILIES]:
            raise ValueError(f"no family is called {unknown[0]!r}; choose from {', '.join(ALL_FAMILIES)}")
        if len(set(self.families)) != len(self.families):
            raise ValueError(f"--families names a family twice: {','.join(self.families)}")
        if small := [size for size in self.sizes if size < 2]:
            raise ValueError(f"--sizes are kernel widths in taps, at least 2; got {small[0]}")
        if not 0 <= self.null_rate < 1:
            raise ValueError(f"--null-rate is a share, at least 0 and below 1; got {self.null_rate}")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be 1 or more, got {self.steps}; --no-autoencoder leaves it out")
        if self.autoencoder is not None and self.no_autoencoder:
            raise ValueError("--autoencoder PATH and --no-autoencoder exclude each other; give one of them")

        if not self.replace_r2 <= 1:
            raise ValueError(
                f"--replace-r2 is a share of a kernel's energy, at most 1; got {self.replace_r2}"
            )
        if self.replace in ("universal", "autoencoder") and self.no_autoencoder:
            raise ValueError(f"--replace {self.replace} needs the autoencoder; leave out --no-autoencoder")

        self._check_processes()

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

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the numbers. Inputs are compared by content, not by path."""
        names = ("sizes", "families", "profile", "criterion", "seed", "steps", "null_rate", "no_autoencoder")
        settings = {name: value for name, value in asdict(self).items() if name in (*names, "evidence")}
        if self.filters is not None:
            settings["filters"] = _content(self.filters)
        return settings


def _content(path: Path) -> str:
    """Digest of a file's content."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
