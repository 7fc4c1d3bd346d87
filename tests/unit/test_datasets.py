"""The engine of the recipes: patterns, roots, tables, splits, masks, the command."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.support.made_up import MINIMAL, add, picture, volume

from normscan import Cohort, datasets
from normscan.cli.main import main
from normscan.datasets import recipe as recipes
from normscan.datasets.layout import Tree, compile_pattern, natural
from normscan.datasets.preparation import _rows
from normscan.errors import ArgumentError, CohortError


@pytest.fixture
def brainmri(tmp_path: Path) -> Path:
    root = tmp_path / "data" / "brain_tumor_dataset"
    for i in range(40):
        picture(root / ("no" if i < 30 else "yes") / f"{i}.png", i)
    return root


@pytest.mark.parametrize(
    ("pattern", "path", "groups"),
    [
        ("a/{x}_{y}.nii", "a/1_2_3.nii", {"x": "1", "y": "2_3"}),
        ("a/{x}_{y}.nii", "a/b/1_2.nii", None),
        ("a/{x}_{y}.nii", "a/1_2xnii", None),
        ("{x}/{x}.png", "s1/s1.png", {"x": "s1"}),
        ("{x}/{x}.png", "s1/s2.png", None),
        ("**/f.png", "f.png", {}),
        ("**/f.png", "a/b/f.png", {}),
        ("**/f.png", "a/bf.png", None),
        ("*/f*.png", "a/f (1).png", {}),
        ("{n:\\d{3}}.png", "012.PNG", {"n": "012"}),
        ("{n:\\d{3}}.png", "0123.png", None),
        ("a (b)+.png", "a (b)+.png", {}),
        ("x.nii{g:(?:[.]gz)?}", "x.nii", {"g": ""}),
    ],
)
def test_patterns(pattern: str, path: str, groups: dict[str, str] | None) -> None:
    hit = compile_pattern(pattern).fullmatch(path)
    assert (hit.groupdict() if hit else None) == groups


def test_a_wrong_pattern_is_named() -> None:
    with pytest.raises(CohortError, match=r"\{x:\(\}"):
        compile_pattern("{x:(}")


def test_natural_order() -> None:
    assert sorted(["a10", "a9", "b1", "a"], key=natural) == ["a", "a9", "a10", "b1"]


def test_a_tree_leaves_out_hidden_files_and_loops(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 0)
    (tmp_path / "a" / ".DS_Store").write_text("x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "1.png").write_text("x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert Tree(tmp_path).paths == ["a/1.png"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("data", r"one level too high: give .*brain_tumor_dataset\."),
        ("", r"2 levels too high: give .*brain_tumor_dataset\."),
        ("data/brain_tumor_dataset/no", r"one level too low: give .*brain_tumor_dataset\."),
        ("other", r"Expected: no/1 no\.jpeg; yes/Y1\.jpg.* Found: notes/, readme\.txt"),
        ("nowhere", "is no folder"),
    ],
)
def test_a_wrong_root_is_explained(brainmri: Path, given: str, says: str) -> None:
    top = brainmri.parents[1]
    (top / "other" / "notes").mkdir(parents=True)
    (top / "other" / "readme.txt").write_text("x")
    (top / "other" / "notes" / "x.txt").write_text("x")
    with pytest.raises(CohortError, match=says):
        datasets.prepare("brainmri253", top / given)


def test_the_dra_split_is_that_of_scikit_learn(brainmri: Path, tmp_path: Path) -> None:
    from sklearn.model_selection import train_test_split

    cohort = datasets.prepare("brainmri253", brainmri, "dra", tmp_path / "dra.csv")
    normals = [f"no/{i}.png" for i in range(30)]
    _, test = train_test_split(normals, test_size=0.25, random_state=42)
    healthy = cohort.table[(cohort.table["split"] == "test") & (cohort.table["label"] == 0)]
    assert sorted(healthy["path"]) == sorted(test)
    assert set(cohort.table[cohort.table["label"] == 1]["split"]) == {"test"}
    assert any("should have 73 in train 0" in note and "22" in note for note in cohort.notes)
    again = Cohort.read(tmp_path / "dra.csv")
    assert list(again.table["split"]) == list(cohort.table["split"])
    assert again[0].load().shape == (8, 8)


def test_counts_name_what_is_missing(brainmri: Path) -> None:
    notes = datasets.prepare("brainmri253", brainmri).notes
    assert "expected 98 healthy, found 30." in notes
    assert "expected 155 anomalous, found 10." in notes


def test_alternative_counts_are_fine() -> None:
    from normscan.datasets.rows import check_counts

    raw = {"x": {**MINIMAL, "counts": {"scans": [1, 2]}, "parts": {"*.png": [2, 3], "q/*": 4}}}
    rows = [{"path": f"{i}.png", "label": 0, "mask": [], "_wants_mask": False} for i in range(2)]
    tree = Tree(Path(), ["0.png", "1.png"])
    assert check_counts(recipes.parse("x", raw), tree, rows) == [
        "q/*: expected 4 files, found nothing."
    ]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"split": "drau"}, "no split 'drau'.*Did you mean 'dra'"),
        ({"only": "kid=1"}, "no column 'kid'"),
        ({"only": "label=3"}, "'label' is never 3: 0, 1"),
        ({"channels": ["flair"]}, "no channel flair"),
    ],
)
def test_wrong_options(brainmri: Path, options: dict[str, object], error: str) -> None:
    with pytest.raises(ArgumentError, match=error):
        datasets.prepare("brainmri253", brainmri, **options)  # type: ignore[arg-type]


def test_only_keeps_some_rows(brainmri: Path) -> None:
    assert set(datasets.prepare("brainmri253", brainmri, only="label=0").table["label"]) == {0}


@pytest.mark.parametrize("form", ["csv", "json", "files", "txt"])
def test_split_files(brainmri: Path, tmp_path: Path, form: str) -> None:
    wanted = {"no/0.png": "train", "no/1.png": "val", "no/2.png": "test", "yes/30.png": "test"}
    file = tmp_path / f"list.{form}"
    if form == "csv":
        text = "path,split\n" + "".join(f"{p},{s}\n" for p, s in wanted.items())
    elif form == "json":
        text = (
            '{"train": ["/x/0.png"], "val": ["1.png"], "test": {"0": ["2.png"], "1": ["30.png"]}}'
        )
    else:
        text = ""
        for part in ("train", "val", "test"):
            names = [Path(p).stem for p, s in wanted.items() if s == part]
            kind = "csv" if form == "files" else "txt"
            head = "nr,img_name\n" if form == "files" else ""
            lines = "".join(f"{i},{n}\n" if head else f"{n} 0\n" for i, n in enumerate(names))
            (tmp_path / f"{part}.{kind}").write_text(head + lines)
            text += f"{part}={tmp_path / part}.{kind},"
    if form in ("csv", "json"):
        file.write_text(text)
        text = str(file)
    cohort = datasets.prepare("brainmri253", brainmri, split_file=text.rstrip(","))
    got = dict(zip(cohort.table["path"], cohort.table["split"], strict=True))
    assert {p: s for p, s in got.items() if s} == wanted


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("path,label\nno/0.png,1\n", "no column 'split'"),
        ("path,split\nno/0.png,trian\n", "'trian' is no part"),
        ("path,split\nnowhere.png,train\n", "none of its 1 ids"),
    ],
)
def test_wrong_split_files(brainmri: Path, tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(CohortError, match=rf"list\.csv: .*{error}"):
        datasets.prepare("brainmri253", brainmri, split_file=str(tmp_path / "list.csv"))


@pytest.mark.parametrize("text", ["{", "[1]", '{"train": 5}', '{"train": {"0": "a"}}', '{"x": []}'])
def test_hostile_json_lists(brainmri: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(CohortError, match=r"list\.json"):
        datasets.prepare("brainmri253", brainmri, split_file=str(tmp_path / "list.json"))


def test_splits_that_cannot_be_made_say_why(tmp_path: Path) -> None:
    picture(tmp_path / "lag" / "non_glaucoma" / "image" / "1.png", 1)
    with pytest.raises(ArgumentError, match=r"data\.json of LAG .*--split_file"):
        datasets.prepare("lag", tmp_path / "lag", "medianomaly")
    picture(tmp_path / "aptos" / "test_images" / "1.png", 1)
    with pytest.raises(ArgumentError, match="can't be made from the download alone"):
        datasets.prepare("aptos", tmp_path / "aptos", "edc")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"acess": "open"}, "acess"),
        ({"access": "public"}, "access"),
        ({"files": [{"path": "a", "label": 2}]}, "files.0.label"),
        ({"splits": {"a": {"source": "x", "rule": "random"}}}, "splits.a.rule"),
    ],
)
def test_a_wrong_recipe_names_its_field(change: dict[str, object], error: str) -> None:
    with pytest.raises(CohortError, match=f"recipe bad: {error}"):
        recipes.parse("bad", {"bad": {**MINIMAL, **change}})


def test_inheritance() -> None:
    raw = {
        "a": {**MINIMAL, "counts": {"scans": 3}, "traps": ["t"]},
        "b": {"section": "y", "inherits": "a", "name": "B"},
        "c": {"section": "y", "inherits": "b", "counts": {}},
    }
    last = recipes.parse("c", raw)
    assert (last.name, last.section, last.counts, last.traps) == ("B", "y", {}, ["t"])


def test_a_leaking_split_is_refused_unless_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (("train", "p1_0"), ("test", "p1_1"), ("test", "p2_0"))
    for seed, (part, name) in enumerate(files):
        picture(tmp_path / part / f"{name}.png", seed)
    for leaks in (False, True):
        add(
            monkeypatch,
            files=[{"path": "{split:train|test}/{subject}_*.png", "label": 0}],
            splits={"given": {"source": "x", "rule": "given", "leaks": leaks}},
        )
        if leaks:
            cohort = datasets.prepare("toyset", tmp_path, "given")
            assert list(cohort.table["patient"]) == ["p1", "p2", "p1"]
            assert cohort.table["subject"].nunique() == 3
        else:
            with pytest.raises(CohortError, match="1 subjects on both sides"):
                datasets.prepare("toyset", tmp_path, "given")
    own = datasets.prepare("toyset", tmp_path)
    places = own.table.groupby("subject")["split"].nunique()
    assert (places == 1).all() and list(own.table["given_split"]) == ["test", "test", "train"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, r"the table train\.csv is missing"),
        ("id,diagnosis\na,1\n", r"train\.csv: has no column 'id_code', only id, diagnosis"),
        ("", r"train\.csv: is no readable table"),
        ("id_code,diagnosis\n" + '"' * 7, r"train\.csv: is no readable table"),
    ],
)
def test_hostile_side_tables(tmp_path: Path, text: str | None, error: str) -> None:
    picture(tmp_path / "train_images" / "a.png", 0)
    if text is not None:
        (tmp_path / "train.csv").write_text(text)
    with pytest.raises(CohortError, match=error):
        datasets.prepare("aptos", tmp_path)


def test_a_spreadsheet_without_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    def no_reader(*args: object, **kwargs: object) -> None:
        raise ImportError("xlrd")

    monkeypatch.setattr(pd, "read_excel", no_reader)
    volume(tmp_path / "IXI002-Guys-0828-T1.nii.gz", np.arange(8.0).reshape(2, 2, 2))
    (tmp_path / "IXI.xls").write_bytes(b"\xd0\xcf")
    cohort = datasets.prepare("ixi", tmp_path)
    assert len(cohort) == 1
    assert any("Save the sheet beside it as IXI.csv" in note for note in cohort.notes)


def test_published_lists_are_small_whole_and_without_leaks() -> None:
    folder = Path(recipes.__file__).parent
    lists = [(r.id, s) for r in datasets.list_datasets() for s in r.splits.values() if s.file]
    assert lists
    for id, split in lists:
        file = folder / split.file
        lines = [line.split(",") for line in file.read_text().splitlines()[1:]]
        assert file.stat().st_size < 100_000
        assert len({name for name, _ in lines}) == len(lines), (id, split.file)
        counts = Counter(part for _, part in lines)
        for key, count in split.counts.items():
            assert counts[key.split()[0]] >= count, (id, key)  # a part may hold both labels
        if id in ("mslub", "brats21"):
            assert sum(split.counts.values()) == len(lines)
    assert set(folder.glob("splits/**/*.csv")) == {folder / s.file for _, s in lists}


def test_patterns_and_builders_of_all_recipes_are_valid() -> None:
    from importlib import import_module

    for recipe in datasets.list_datasets():
        for rule in recipe.files:
            main_patterns = [rule.path, *rule.channels.values(), *rule.masks, *rule.exclude]
            for pattern in [*main_patterns, rule.foreground, *(t.file for t in rule.tables)]:
                compile_pattern(pattern)
        if recipe.builder:
            module, _, name = recipe.builder.partition(":")
            assert callable(getattr(import_module(f"normscan.datasets.{module}"), name))
        assert recipe.access == "unresolved" or recipe.files or recipe.builder, recipe.id
        assert recipe.text().startswith(f"{recipe.id}: ")
        assert "—" not in recipe.text()


def test_list_filters() -> None:
    assert {r.modality.split()[0] for r in datasets.list_datasets(modality="oct")} >= {"OCT"}
    assert all(r.access == "cred" for r in datasets.list_datasets(access="cred"))
    with pytest.raises(ArgumentError, match="access 'free'"):
        datasets.list_datasets(access="free")


def test_the_command(
    brainmri: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["datasets"]) == 0
    assert "brainmri253" in capsys.readouterr().out
    assert main(["datasets", "list", "--access", "cred"]) == 0
    assert "ixi" not in capsys.readouterr().out.split()
    assert main(["datasets", "show", "brainmri253"]) == 0
    assert "train 0: 73" in capsys.readouterr().out
    assert main(["datasets", "prepare", "brainmri253", "--root", str(brainmri)]) == 0
    out = capsys.readouterr().out
    assert "cohort: brainmri253.csv" in out and "expected 98 healthy" in out
    assert len(Cohort.read("brainmri253.csv")) == 40
    for line, error in (
        (["shwo"], "Did you mean 'show'"),
        (["show"], "name a data set"),
        (["show", "ixxi"], "Did you mean 'ixi'"),
        (["prepare", "ixi"], "--root FOLDER"),
        (["prepare", "magnets", "--root", "."], "can't be prepared"),
        (["download", "cc359", "--root", "."], "can't be fetched by a program.*ccdataset"),
    ):
        assert main(["datasets", *line]) == 2
        import re

        assert re.search(error, capsys.readouterr().err), line


def test_importing_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, normscan.datasets, normscan.cli.datasets; print('numpy' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("id", "folder", "counts"),
    [
        ("brainmri253", "brain_mri_kaggle", {0: 98, 1: 155}),
        ("headct200", "head_ct_kaggle", {0: 100, 1: 100}),
    ],
)
def test_real_downloads_agree_with_their_numbers(
    shared: Path, tmp_path: Path, id: str, folder: str, counts: dict[int, int]
) -> None:
    root = shared / "data" / folder
    for split in [None, *datasets.load(id).splits]:
        cohort = datasets.prepare(id, root, split, tmp_path / f"{split}.csv")
        assert Counter(cohort.table["label"]) == counts
        assert not [n for n in cohort.notes if "expected" in n or "should have" in n]
    published = Cohort.read(shared / "data" / "splits" / f"{folder}.csv", root=shared / "data")
    ours = {
        Path(p).name: int(v)
        for p, v in zip(cohort.table["path"], cohort.table["label"], strict=True)
    }
    theirs = zip(published.table["path"], published.table["label"], strict=True)
    assert all(ours[Path(p).name] == v for p, v in theirs)


def test_real_volumes_with_masks(shared: Path) -> None:
    cohort = datasets.prepare(
        "mslub", shared / "data" / "ms_lesions_ljubljana_3d", channels=["flair"]
    )
    assert sorted(cohort.table["subject"]) == ["patient07", "patient19"]
    row = cohort[0]
    mask = row.load_mask(row.load())
    assert mask is not None and mask.any()


def test_rows_of_a_builder_are_completed(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [])
    assert _rows(recipes.parse("x", {"x": MINIMAL}), tree, lambda: tmp_path) == []
