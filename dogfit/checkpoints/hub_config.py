"""Hub to read from, and the folders that keep what was read."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HubConfig:
    """Address of a hub and how it is asked; `hub_from_environment` makes the usual one."""

    endpoint: str
    """Address, such as "https://huggingface.co"."""
    cache_dir: Path
    """Folder of huggingface_hub's own cache, which holds whole files."""
    pieces_dir: Path
    """Folder for listings of repositories and the parts of files that were read."""
    offline: bool = False
    """Ask nothing of the hub; use only what these folders hold."""
    pauses_s: tuple[float, ...] = (0.5, 2.0)
    """Seconds before each new attempt after a cut connection, a rate limit or a server error."""


def hub_from_environment(*, offline: bool = False) -> HubConfig:
    """Make the configuration that huggingface_hub has from its environment variables.

    `HF_ENDPOINT` is the address, `HF_HOME`, `HF_HUB_CACHE` and `HF_ASSETS_CACHE` place the folders, and
    `HF_HUB_OFFLINE` has the same effect as `offline`.

    Args:
      offline: ask nothing of the hub, also where the environment would allow it.

    Returns:
      The configuration.
    """
    from huggingface_hub import constants

    return HubConfig(
        endpoint=constants.ENDPOINT,
        cache_dir=Path(constants.HF_HUB_CACHE),
        pieces_dir=Path(constants.HF_ASSETS_CACHE) / "dogfit",
        offline=offline or constants.is_offline_mode(),
    )
