"""Files of a Hugging Face hub: what may come from it, how large, and what may go there.

Nothing but data travels: JSON, safetensors, Markdown and tables. A repository that holds anything
that runs when it is read (pickle, code, archives) is refused whole, although those files would not
be fetched: who puts them there means another library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from normscan.errors import ArgumentError, OutputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf:"
SECONDS = 10  # until a hub that says nothing counts as away
# What lies in many repositories and is never fetched.
BESIDE = frozenset(
    {".md", ".txt", ".json", ".csv", ".safetensors", ".minisig", ".png", ".jpg", ".jpeg", ".svg"}
)
PLAIN = frozenset({".gitattributes", ".gitignore", "LICENSE", "NOTICE", "SHA256SUMS"})
_REPO = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Place:
    """A repository of a hub, and a branch, tag or commit of it.

    Attributes:
        repo: ``owner/name``.
        revision: None for the main branch.
    """

    repo: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if not _REPO.fullmatch(self.repo):
            raise ArgumentError(f"'{self.repo}' is no repository of a hub: write owner/name.")

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def of(cls, text: str) -> Place:
        """Read ``owner/name``, ``owner/name@revision``, with or without ``hf:`` before it."""
        repo, _, revision = text.removeprefix(SCHEME).partition("@")
        return cls(repo, revision or None)


def fetch(place: Place, bounds: Mapping[str, int]) -> Path:
    """Fetch files of a repository into the cache of huggingface_hub.

    What was fetched once is found without a network; a transfer that was cut goes on.

    Args:
        place: where from.
        bounds: names of the files, and the most bytes that each may have.

    Returns:
        The folder in the cache, which holds those of the files that there are. Others may lie there.

    Raises:
        OutputError: no such repository, no right, no network, a file of another kind or too large.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    folder: Path | None = None
    with _reached(place):
        held = _listed(place, bounds)
        for name in bounds if held is None else held.names:
            # The first file settles the commit, and the cache notes which one a branch meant.
            revision = place.revision if folder is None else folder.name
            try:
                path = Path(
                    hf_hub_download(
                        place.repo, name, revision=revision, endpoint=_endpoint(),
                        local_files_only=held is None, etag_timeout=SECONDS,
                    )
                )  # fmt: skip
            except EntryNotFoundError:
                if held is None:
                    continue
                raise
            _check_size(place, name, path.stat().st_size, bounds[name])
            folder = path.parent
            if held is not None and folder.name != held.commit:
                raise OutputError(f"{place}: it is being changed at this moment. Try again.")
    if folder is None and held is None:
        raise OutputError(
            f"{place}: the hub at {_endpoint() or 'huggingface.co'} can't be reached, and nothing of this "
            "repository was fetched before. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        )
    if folder is None:
        raise OutputError(f"{place}: holds none of {', '.join(bounds)}.")
    return folder


def send(
    place: Place, folder: Path, names: Iterable[str], stale: Iterable[str], public: bool, said: str
) -> str:
    """Put files into a repository, all in one commit; one that isn't there is made.

    Args:
        place: where to; a branch that isn't there is made.
        folder: of the files.
        names: of the files.
        stale: names that are removed where they are in the repository and not among ``names``.
        public: whether everybody sees a repository that is made.
        said: message of the commit.

    Returns:
        Address of the commit.

    Raises:
        OutputError: no right, no network.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    names = list(names)
    with _reached(place):
        api = _api()
        api.create_repo(place.repo, private=not public, exist_ok=True)
        if place.revision:
            api.create_branch(place.repo, branch=place.revision, exist_ok=True)
        there = {s.rfilename for s in _information(api, place).siblings or ()}
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names
        ]
        gone = sorted((there & set(stale)) - set(names))
        operations += [CommitOperationDelete(path_in_repo=name) for name in gone]
        made = api.create_commit(
            place.repo, operations, commit_message=said, revision=place.revision
        )
        return str(made.commit_url)


@dataclass(frozen=True)
class _Held:
    """A commit, and which of the files that are asked for it holds."""

    commit: str
    names: list[str]


def _listed(place: Place, bounds: Mapping[str, int]) -> _Held | None:
    """Ask what a repository holds, and check it; None where the hub can't be reached."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        about = _information(_api(), place)
    except HfHubHTTPError:
        raise
    except Exception as error:
        if _is_away(error):
            return None
        raise
    sizes = {s.rfilename: s.size for s in about.siblings or ()}
    for name in sizes:
        path = PurePosixPath(name)
        if path.suffix.lower() not in BESIDE and path.name not in PLAIN:
            raise OutputError(
                f"{place}: holds '{name}', which is no file of a detector. Detectors are JSON, "
                "safetensors, Markdown and tables; nothing was fetched."
            )
    for name, most in bounds.items():
        _check_size(place, name, sizes.get(name) or 0, most)
    return _Held(str(about.sha), [name for name in bounds if name in sizes])


def _check_size(place: Place, name: str, size: int, most: int) -> None:
    if size > most:
        raise OutputError(
            f"{place}: {name} has {size / 1e6:.0f} MB; at most {most / 1e6:.0f} MB are taken."
        )


def _information(api: HfApi, place: Place) -> Any:
    return api.model_info(place.repo, revision=place.revision, files_metadata=True, timeout=SECONDS)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _api() -> HfApi:
    from huggingface_hub import HfApi

    from normscan.version import __version__

    return HfApi(endpoint=_endpoint(), library_name="normscan", library_version=__version__)


def _is_away(error: Exception) -> bool:
    """Whether there is no way to the hub; its library's errors come from several others."""
    words = ("Connect", "Timeout", "Offline", "RemoteProtocol", "ReadError", "WriteError")
    return any(word in kind.__name__ for kind in type(error).__mro__ for word in words)


@contextmanager
def _reached(place: Place) -> Iterator[None]:
    """Say what goes wrong with a hub in one sentence."""
    from huggingface_hub import errors

    login = "Log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except OutputError:
        raise
    except errors.RevisionNotFoundError as error:
        raise OutputError(f"{place}: there is no such revision.") from error
    except errors.GatedRepoError as error:
        raise OutputError(f"{place}: its owner must let you in. {login}.") from error
    except errors.RepositoryNotFoundError as error:
        raise OutputError(f"{place}: no such repository, or it is private. {login}.") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        hint = f" {login}." if status in (401, 403) else ""
        raise OutputError(f"{place}: the hub refuses ({_first_line(error)}).{hint}") from error
    except Exception as error:
        if _is_away(error) or isinstance(error, OSError | ValueError | RuntimeError):
            raise OutputError(
                f"{place}: the transfer failed ({_first_line(error)}). Try again: nothing was left half "
                "written."
            ) from error
        raise


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
