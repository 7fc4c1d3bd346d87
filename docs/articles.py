"""What the pages of methods say of their articles: title, link, BibTeX, equations, what it suits."""

from __future__ import annotations

import functools
import inspect
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normscan.registry import Card

FILE = Path(__file__).resolve().parent / "articles.toml"


@functools.cache
def read() -> dict[str, Any]:
    """Return the file: ``articles`` by key and ``methods`` by id."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def link(article: Mapping[str, Any]) -> str:
    """Return the address of an article, by its DOI where it has one; arXiv gives one to each."""
    if "doi" in article:
        return f"https://doi.org/{article['doi']}"
    if "arxiv" in article:
        return f"https://doi.org/10.48550/arXiv.{article['arxiv']}"
    return str(article["url"])


def bibtex(key: str, article: Mapping[str, Any]) -> str:
    """Return the BibTeX entry of an article."""
    where = "journal" if article["kind"] == "article" else "booktitle"
    fields = {"title": f"{{{article['title']}}}", "author": article["authors"]}
    fields |= {where: article["venue"], "year": article["year"]}
    if "arxiv" in article:
        fields |= {"eprint": article["arxiv"], "archiveprefix": "arXiv"}
    fields |= {"doi": article["doi"]} if "doi" in article else {"url": link(article)}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{article['kind']}{{{key},", *lines, "}"])


def of(card: Card) -> dict[str, Any]:
    """Return what the file says of a method; an empty entry for one that it doesn't know."""
    found: dict[str, Any] = read()["methods"].get(card.id, {"articles": []})
    return found


def source(card: Card) -> str:
    """Return the titles of a method's articles with their links."""
    known = read()["articles"]
    lines = []
    for key in of(card)["articles"]:
        article = known[key]
        lines.append(
            f"*{article['title']}*. {article['venue']} {article['year']}. <{link(article)}>"
        )
    return "  \n".join(lines)


def equations(card: Card) -> str:
    """Return the equations of loss, map and score; empty where nothing is said."""
    said = of(card)
    names = ("loss", "map", "score")
    lines = [f"{name:<6} {said[name]}" for name in names if name in said]
    if not lines:
        return ""
    words = "x is the image, x̂ its restoration, f features, E and D encoder and decoder."
    return "\n".join(["```text", *lines, "```", "", words])


def fitness(card: Card) -> str:
    """Return what a method is good for and where it fails, as a list; empty where nothing is said."""
    said = of(card)
    words = {"good": "Good for", "fails": "Fails at"}
    lines = [f"- *{words[k]}*: {'; '.join(said[k])}." for k in words if said.get(k)]
    if not lines:
        return ""
    told = (
        "By how it works and what its article says; what was measured here stands in the results."
    )
    return "\n".join([*lines, "", told])


def related(card: Card, cards: Mapping[str, Card]) -> list[str]:
    """Return the methods that a page's text names, that name it, or that share its article."""
    mine = set(of(card)["articles"])

    def names(one: Card, other: str) -> bool:
        return bool(re.search(rf"``{re.escape(other)}``", inspect.getdoc(one.build) or ""))

    return [
        id
        for id, other in cards.items()
        if id != card.id
        and (names(card, id) or names(other, card.id) or mine & set(of(other)["articles"]))
    ]


def citations(card: Card) -> str:
    """Return the BibTeX entries of a method's articles."""
    known = read()["articles"]
    return "\n\n".join(bibtex(key, known[key]) for key in of(card)["articles"])
