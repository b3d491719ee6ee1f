"""What went wrong with the hub, in plain words."""

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dogfit.errors import DogfitError, HubError, InputError

_LOGIN = "run `hf auth login` if you have access"


def offline_error(repo: str, revision: str) -> HubError:
    """Offline, and the cache does not hold what is needed."""
    return HubError(
        f"offline, and {repo}@{revision} was not fetched before (or not all that is now asked for); "
        "run once online, or pass a local path"
    )


def explain(error: Exception, repo: str, revision: str, opened: bool) -> DogfitError:
    """The error to raise in place of what huggingface_hub or its HTTP client raised.

    Args:
      error: as caught.
      repo: `owner/name`.
      revision: as asked for.
      opened: whether the repository was already found to exist.
    """
    hub = constants.ENDPOINT
    # The order matters: a gated repository is a kind of missing one to huggingface_hub.
    if isinstance(error, HFValidationError):
        return InputError(f"{repo!r} is not a repository name; expected owner/name, or a path that exists")
    if isinstance(error, OfflineModeIsEnabled):
        return offline_error(repo, revision)
    if isinstance(error, GatedRepoError):
        return HubError(f"{repo} is gated: accept its terms at {hub}/{repo}, then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repo} has no revision {revision!r}; those that exist are at {hub}/{repo}/tree/main"
        )
    missing = isinstance(error, RepositoryNotFoundError) or (
        isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 404)
    )
    if missing and not opened:
        return HubError(
            f"no repository {repo!r} at {hub}, or it is private ({_LOGIN}); "
            "nor is there a local file or folder of that name"
        )
    if isinstance(error, DisabledRepoError):
        return HubError(f"{repo} has been disabled by the hub")
    if isinstance(error, LocalEntryNotFoundError):
        return HubError(f"{repo}: could not reach {hub} while downloading: {_first_line(error)}")
    if isinstance(error, EntryNotFoundError):
        return HubError(f"{repo}@{revision}: a file is listed but not there: {_first_line(error)}")
    if isinstance(error, HfHubHTTPError):
        return HubError(f"{repo}: {_status(error.response.status_code)} ({hub})")
    if isinstance(error, OSError) and error.errno is not None:
        return DogfitError(f"{repo}: could not store what was downloaded: {error.strerror}")
    return HubError(
        f"{repo}: the connection to {hub} failed: {_first_line(error) or type(error).__name__}; "
        "try again, or use --offline if it was fetched before"
    )


def _status(code: int) -> str:
    if code in (401, 403):
        return f"the hub refused access ({code}); {_LOGIN}"
    if code == 404:
        return "the hub does not know this address (404)"
    if code == 429:
        return "the hub asks for fewer requests (429); wait a few minutes and run again"
    if code >= 500:
        return f"the hub is in trouble (server error {code}); try again later"
    return f"the hub answered {code}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
