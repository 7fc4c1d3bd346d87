"""The documentation says what the program does: pages, links, commands."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from normscan import registry
from normscan.cli import commands
from normscan.cli import main as cli
from normscan.registry import load_all
from normscan.signatures import DESCRIPTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + [ROOT / "src" / "normscan" / "cli" / "assistant" / "SKILL.md"]
    + [p for p in DOCS.rglob("*.md") if DOCS / "methods" not in p.parents]
)
CARDS = load_all()
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A method that CONTRIBUTING.md builds as an example.
EXAMPLES = {"ae_l2": "ae_dense"}


def load_generator():
    sys.path.insert(0, str(DOCS))  # its neighbours, as when it is run
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator():
    return load_generator()


@pytest.fixture(scope="module")
def generated(generator) -> dict[str, str]:
    return generator.pages()


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """The text without its code blocks."""
    return BLOCK.sub("", text)


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as the site makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h.lower())).strip("-") for h in heads}


def shown_commands(page: Path) -> list[str]:
    """Lines of code blocks that call normscan."""
    found = []
    for _, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        joined = block.replace("\\\n", " ")
        found += [line for line in joined.splitlines() if line.startswith("normscan ")]
    return found


def has_placeholder(tokens: list[str]) -> bool:
    return any(t == "..." or re.fullmatch(r"[A-Z]{2,}(\.\.\.)?", t) for t in tokens)


# --------------------------------------------------------------------- generated


def test_readme_lists_the_methods(generator):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generator.filled_readme(text, CARDS) == text, (
        "the table of methods in README.md is old: run `python docs/generate.py --readme`"
    )


def test_the_table_of_backbones_is_current(generator):
    text = generator.backbones.PAGE.read_text(encoding="utf-8")
    assert generator.filled_backbones(text, CARDS) == text, (
        "the table of backbones is old: run `python docs/generate.py --readme`"
    )


def test_the_index_of_methods_is_current(generator):
    assert registry.INDEX.read_text(encoding="utf-8") == generator.index_text(), (
        "the index of methods is old: run `python docs/generate.py --index`"
    )


@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "--json"], ["fit", "--help"], ["fit", "vae", "--help"]]
)
def test_methods_are_told_without_importing_them(arguments: list[str]):
    lines = ["import sys", "from normscan.cli.main import main", f"assert main({arguments}) == 0"]
    lines += ["heavy = {'torch', 'pandas', 'jsonargparse'} & set(sys.modules)", "assert not heavy"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "vae" in done.stdout


@pytest.mark.parametrize("method", CARDS)
def test_page_describes_every_argument(method: str, generator, generated):
    page = generated[f"{method}.md"]
    _, described = generator.split_docstring(CARDS[method].build)
    for argument in inspect.signature(CARDS[method].build).parameters:
        assert described.get(argument), f"{method}: the argument {argument} has no text"
        assert f"| `{argument}` |" in page
    unknown = set(described) - set(inspect.signature(CARDS[method].build).parameters)
    assert not unknown, f"{method}: the docstring describes {unknown}, which it doesn't take"
    for preset in CARDS[method].presets:
        assert f"| `{preset}` |" in page


def test_every_generator_is_drawn_or_planned(generator):
    """Each adversarial method that has one is in the script; what it drew is small and shown."""
    plans = importlib.import_module("generators")
    adversarial = {id for id, card in CARDS.items() if card.family == "adversarial"}
    assert set(plans.PLANS) == adversarial - {"octa_layers", "seebock_epistemic"}
    page = (DOCS / "explanation" / "generators.md").read_text(encoding="utf-8")
    pictures = {path.stem: path for path in plans.PLACE.glob("*.webp")}
    assert pictures.keys() == {path.stem for path in plans.PLACE.glob("*.json")}
    for id, path in pictures.items():
        assert path.stat().st_size < 60_000
        assert f"img/generators/{id}.webp" in page
        assert f"../img/generators/{id}.webp" in generator.measured.generator_text(CARDS[id])


def test_what_is_said_of_articles_belongs_to_methods(generator):
    """Every entry is used, and BibTeX's braces are balanced."""
    said = generator.articles.read()
    assert set(said["methods"]) <= set(CARDS)
    used = {key for entry in said["methods"].values() for key in entry["articles"]}
    assert used == set(said["articles"])
    for key, article in said["articles"].items():
        entry = generator.articles.bibtex(key, article)
        assert entry.count("{") == entry.count("}"), key
        assert generator.articles.link(article).startswith("https://"), key
        assert article["kind"] in ("article", "inproceedings"), key


def test_index_links_every_method(generated):
    assert set(generated) == {"index.md", "cli.md", "parity.md", *(f"{m}.md" for m in CARDS)}
    for method in CARDS:
        assert f"]({method}.md)" in generated["index.md"]


def test_command_page_has_every_command(generated):
    for command in cli.COMMANDS:
        assert f"## normscan {command}\n" in generated["cli.md"]


def test_generated_tables_have_even_rows(generated):
    """A bar in a type or default must not open a column."""
    for page, text in generated.items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(widths) == 1, f"{page}: {table[:200]}"


# ------------------------------------------------------------------------- links


def check_link(source: Path, target: str, generated: dict[str, str]) -> None:
    path, _, anchor = target.partition("#")
    file = (source.parent / path).resolve() if path else source
    made = file.parent == DOCS / "methods" and file.suffix == ".md"
    assert file.name in generated if made else file.exists(), (
        f"{name(source)}: {target} isn't there"
    )
    if anchor and file.suffix == ".md":
        text = generated[file.name] if made else file.read_text(encoding="utf-8")
        assert anchor in anchors(text), f"{name(source)}: {target}: no such heading"


def links(text: str, pictures: bool) -> list[str]:
    found = [t for t in LINK.findall(prose(text)) if "://" not in t and not t.startswith("mailto:")]
    return [t for t in found if t.endswith((".png", ".svg")) == pictures]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path, generated):
    for target in links(page.read_text(encoding="utf-8"), pictures=False):
        check_link(page, target, generated)


def test_links_of_generated_pages_resolve(generated):
    for page, text in generated.items():
        for target in links(text, pictures=False):
            check_link(DOCS / "methods" / page, target, generated)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pictures_are_there(page: Path):
    for target in links(page.read_text(encoding="utf-8"), pictures=True):
        assert (page.parent / target).is_file(), f"{name(page)}: the picture {target} is missing"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        if DOCS in page.parents:
            assert f": {page.relative_to(DOCS).as_posix()}\n" in text, f"{name(page)} is in no menu"


# ---------------------------------------------------------------------- commands

COMMANDS = [pytest.param(p, c, id=f"{name(p)}: {c[:60]}") for p in PAGES for c in shown_commands(p)]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_command_parses(page: Path, line: str, tmp_path: Path, monkeypatch):
    tokens = shlex.split(line, comments=True)[1:]
    if has_placeholder(tokens):
        assert tokens[0] in cli.COMMANDS or tokens[0].isupper()
        return
    for head, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]+)"', head)
        if title:
            (tmp_path / title[1]).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tokens = [EXAMPLES.get(t, t) for t in tokens]
    command, rest = tokens[0], tokens[1:]
    assert command in cli.COMMANDS, f"there is no command {command}"
    function, card = commands.signature(command), None
    if command == "fit":
        card, rest = CARDS[rest[0]], rest[1:]
    if {"--help", "--print_config"} & set(rest):
        with pytest.raises(SystemExit) as stop:
            parse(command, function, card, rest)
        assert not stop.value.code
    else:
        parse(command, function, card, rest)


def parse(command: str, function, card, rest: list[str]) -> None:
    parser = cli.build_parser(command, function, card, cli._preset(rest))
    parser.parse_args(cli.spelled(rest, parser._option_string_actions, function))


def test_commands_were_found():
    assert len(COMMANDS) > 20


def test_example_method_is_valid():
    """The example of CONTRIBUTING.md is documented as its own rules ask for."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    source = next(b for head, b in BLOCK.findall(text) if head == "python" and "@register" in b)
    compile(source, "CONTRIBUTING.md", "exec")
    signature = source.partition("def squared_error_autoencoder(")[2].partition(")")[0]
    for argument in re.findall(r"^ {4}(\w+):", signature, re.MULTILINE):
        own = re.search(rf"^ {{8}}{argument}: ", source, re.MULTILINE)
        assert own or argument in DESCRIPTIONS, argument


def test_changelog_has_an_unreleased_section():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = text.partition("## [Unreleased]")[2].partition("\n## ")[0]
    assert re.search(r"^- \S", unreleased, re.MULTILINE)


def test_the_citation_has_the_version():
    import yaml

    from normscan.version import __version__

    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["version"] == __version__ and found["license"] == "Apache-2.0"
    assert found["cff-version"] == "1.2.0" and found["title"] and found["authors"]


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Copyright 2026 The normscan developers" in text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_are_closed(page: Path):
    assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0


# A table's cells, of which CLASS stands for each class in turn and a shell would read a file.
REPRODUCED = [
    pytest.param(part.strip(), id=part.strip()[:70])
    for page in sorted((ROOT / "benchmarks" / "reproduce").glob("*.md"))
    for row in re.findall(r"^\|.*\| open \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for cell in re.findall(r"`([^`]*normscan [^`]*)`", row)
    for part in cell.split("&&")
]


@pytest.mark.parametrize("line", sorted(set(REPRODUCED), key=lambda p: p.id))
def test_command_of_a_published_figure_parses(line: str):
    line = line.replace("CLASS", "bottle").replace('"$(cat names.json)"', """'["cat", "dog"]'""")
    assert "$" not in line and "..." not in line
    command, *rest = shlex.split(line)[1:]
    function, card = commands.signature(command), None
    if command == "fit":
        card, rest = CARDS[rest[0]], rest[1:]
    parse(command, function, card, rest)


def test_every_system_of_language_has_its_command():
    """Each is fitted and evaluated in a row of its own."""
    text = (ROOT / "benchmarks" / "reproduce" / "vision_language.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| (?:open|0\.\d+.*) \|$", text, re.MULTILINE)
    for id, card in CARDS.items():
        if card.family in ("vision_language", "multimodal"):
            own = [row for row in rows if f"normscan fit {id} " in row]
            assert own and all("&& normscan evaluate" in row for row in own), id
