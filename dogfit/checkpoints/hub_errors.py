"""Errors of the hub in plain words."""

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
    """Make the error for what is needed offline and was never fetched.

    Args:
      repo: `owner/name`.
      revision: branch, tag or commit, as asked for.
    """
    return HubError(
        f"offline, and {repo}@{revision} was not fetched before (or not all that is needed now); "
        "run once online, or pass a local path"
    )


def translate_error(
    error: Exception, repo: str, revision: str, *, endpoint: str, repository_found: bool
) -> DogfitError:
    """Make the error to raise in place of one from huggingface_hub or its HTTP client.

    Args:
      error: the error as caught.
      repo: `owner/name`.
      revision: branch, tag or commit, as asked for.
      endpoint: address of the hub.
      repository_found: whether the repository is known to exist.

    Returns:
      An error whose message is one line that says what to do.
    """
    # The order matters: a gated repository is a kind of missing one to huggingface_hub.
    if isinstance(error, HFValidationError):
        return InputError(f"{repo!r} is not a repository name; expected owner/name, or a path that exists")
    if isinstance(error, OfflineModeIsEnabled):
        return offline_error(repo, revision)
    if isinstance(error, GatedRepoError):
        return HubError(f"{repo} is gated: accept its terms at {endpoint}/{repo}, then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repo} has no revision {revision!r}; those that exist are at {endpoint}/{repo}/tree/main"
        )
    missing = isinstance(error, RepositoryNotFoundError) or (
        isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 404)
    )
    if missing and not repository_found:
        return HubError(
            f"no repository {repo!r} at {endpoint}, or it is private ({_LOGIN}); "
            "there is no local file or folder of that name either"
        )
    if isinstance(error, DisabledRepoError):
        return HubError(f"{repo} has been disabled by the hub")
    if isinstance(error, LocalEntryNotFoundError):
        return HubError(f"{repo}: could not reach {endpoint} while downloading: {_first_line(error)}")
    if isinstance(error, EntryNotFoundError):
        return HubError(f"{repo}@{revision}: a file is listed but missing: {_first_line(error)}")
    if isinstance(error, HfHubHTTPError):
        return HubError(f"{repo}: {_describe_status(error.response.status_code)} ({endpoint})")
    if isinstance(error, OSError) and error.errno is not None:
        return DogfitError(f"{repo}: could not store what was downloaded: {error.strerror}")
    return HubError(
        f"{repo}: the connection to {endpoint} failed: {_first_line(error) or type(error).__name__}; "
        "try again, or use --offline if it was fetched before"
    )


def _describe_status(code: int) -> str:
    if code in (401, 403):
        return f"the hub refused access ({code}); {_LOGIN}"
    if code == 404:
        return "the hub does not know this address (404)"
    if code == 429:
        return "the hub asks for fewer requests (429); wait a few minutes and run again"
    if code >= 500:
        return f"the hub has a server error ({code}); try again later"
    return f"the hub answered with status {code}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
