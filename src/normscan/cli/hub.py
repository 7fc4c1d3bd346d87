"""The commands ``normscan push`` and ``normscan pull``."""

from __future__ import annotations


def push(
    run: str,
    repo: str,
    licence: str | None = None,
    dataset: str = "a private cohort",
    gate: bool = True,
    public: bool = False,
) -> None:
    """Put a trained detector into a repository of a Hugging Face hub: normscan push RUN OWNER/NAME.

    Args:
        run: run folder of the detector.
        repo: owner/name, or owner/name@branch; one that isn't there is made.
        licence: of the weights, as the hub calls it, such as cc-by-4.0; by default that they are as
            the training data allow.
        dataset: name of the cohort that the figures in RUN/evaluation are of.
        gate: send the quality gate, too, which holds coarse thumbnails of training scans.
        public: whether everybody sees a repository that is made; one that is there stays as it is.
    """
    from normscan.export.hub import About
    from normscan.export.hub import push as send
    from normscan.identity import names_are_kept

    address, names = send(run, repo, About(licence, dataset, gate), public)
    print(f"sent: {', '.join(names)}")
    if not names_are_kept():
        print("left here: names of scans, and the list of those that it learnt from")
    print(f"commit: {address}\nnext: normscan pull {repo} --out FOLDER")


def pull(repo: str, out: str, gigabytes: float = 8.0) -> None:
    """Fetch a detector from a repository of a Hugging Face hub into a new folder, checked.

    Args:
        repo: owner/name, or owner/name@revision with a branch, tag or commit.
        out: new folder, for `normscan predict` and the like.
        gigabytes: that its weights may have at most.
    """
    from normscan.export.hub import pull as fetch

    folder = fetch(repo, out, int(gigabytes * 1e9))
    print(f"detector: {folder}\nnext: normscan predict {folder} SCAN...")
