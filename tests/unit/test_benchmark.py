"""Protocols, the plan, the ledger and the writing of tables; nothing is trained here."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from normscan import registry
from normscan.benchmark import load, protocols
from normscan.benchmark.cell import Job
from normscan.benchmark.data import Data, MissingDataError, joined, local_sets, prepare_set
from normscan.benchmark.figures import critical_difference, ranks_as_csv
from normscan.benchmark.plan import detector_options, make_plan
from normscan.benchmark.protocol import parse
from normscan.benchmark.restorations import INDICES
from normscan.benchmark.table import VARIANTS
from normscan.benchmark.targets import published, targets
from normscan.benchmark.write import escaped
from normscan.cohort import Cohort
from normscan.datasets.recipe import _all
from normscan.datasets.recipe import load as load_recipe
from normscan.errors import ArgumentError, CohortError, OutputError
from normscan.evaluation import METRICS
from normscan.io.values import write_json
from normscan.metrics import variants
from normscan.preprocess.settings import build_preprocess

SMALL = {
    "title": "T", "source": "S", "budget": "laptop", "budgets": {"laptop": {"presets": ["laptop"]}},
    "headline": {"image": "image_auroc"}, "sets": [{"id": "a", "parts": [{"local": True}]}],
}  # fmt: skip


def small(**changes):
    return parse("small", {"small": {**SMALL, **changes}})


# ------------------------------------------------------------------- protocols


@pytest.mark.parametrize("id", list(protocols()))
def test_a_shipped_protocol_names_only_what_exists(id):
    protocol = load(id)
    for metric in [*protocol.headline.values(), *protocol.metrics]:
        assert metric in METRICS or metric in INDICES
    for name in protocol.variants:
        assert callable(getattr(variants, name)) and name in VARIANTS
    for each in protocol.expanded():
        build_preprocess({**protocol.preprocess, **each.preprocess})
        assert set(each.budgets) <= set(protocol.budgets)
        assert re.fullmatch(r"[\w-]+", each.id)
        for part in each.parts:
            assert part.recipe or part.get or part.local or part.phantom
            if part.recipe and part.recipe in _all():  # recipes of a set may still be missing
                recipe = load_recipe(part.recipe)
                assert part.split is None or part.split in recipe.splits
                if part.split:
                    rule = recipe.splits[part.split]
                    assert rule.rule != "none"
                    assert part.split_file or rule.rule != "list" or rule.file
    for card in registry.load_all().values():
        for budget in protocol.budgets:
            options, _ = detector_options(protocol, protocol.expanded()[0], budget, card, None, {})
            assert options["preset"] in card.presets
    assert protocol.source in protocol.text()
    if protocol.together or protocol.mean:
        assert all(s.group for s in protocol.expanded())


def test_all_protocols_of_the_issue_are_there():
    wanted = {"medianomaly", "bmad", "upd_study", "ader", "ader_classwise", "baur_comparative"}
    assert wanted | {"bench_read", "normative_metrics", "mood", "phantom", "local"} <= set(
        protocols()
    )
    assert load("ader").together and not load("ader_classwise").together
    assert load("ader").sets == load("ader_classwise").sets


def test_phantom_sets_are_simulations_that_can_be_made():
    from normscan.phantom import PhantomConfig

    for each in load("phantom").expanded():
        PhantomConfig(**each.parts[0].phantom)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": ["x"]}, "metric"),
        ({"budget": "paper"}, "paper"),
        ({"headline": {"voxel": "dice"}}, "headline"),
        ({"sets": [{"id": "a", "parts": [{"local": True, "recipe": "ixi"}]}]}, "one of recipe"),
        ({"sets": [{"id": "a", "parts": [{}]}]}, "one of recipe"),
        ({"sets": [SMALL["sets"][0]] * 2}, "same id"),
    ],
)
def test_a_wrong_protocol_is_refused_with_its_name(changes, said):
    with pytest.raises(CohortError, match="protocol small") as error:
        small(**changes)
    assert said in str(error.value)


def test_the_nearest_protocol_is_named():
    with pytest.raises(ArgumentError, match="Did you mean 'medianomaly'"):
        load("medanomaly")


def test_categories_become_sets_of_one_group():
    sets = [s for s in load("ader").expanded() if s.group == "mvtec"]
    assert len(sets) == 15 and sets[0].id == "mvtec_bottle"
    assert sets[0].parts[0].only == "category=bottle"


# ------------------------------------------------------------- options of methods


def test_the_later_layer_of_arguments_wins_and_others_are_dropped():
    budget = {"presets": ["nothing", "laptop"], "arguments": {"size": 32, "epochs": 3}}
    protocol = small(
        budgets={"laptop": {**budget, "methods": {"dae": {"width": 4}}}},
        sets=[{**SMALL["sets"][0], "budgets": {"laptop": {"steps": 7}}}],
    )
    each, card = protocol.expanded()[0], registry.card("dae")
    arguments = {"size": 40, "dae": {"lr": 0.5}}
    options, dropped = detector_options(protocol, each, "laptop", card, None, arguments)
    assert (options["size"], options["steps"], options["width"], options["lr"]) == (40, 7, 4, 0.5)
    assert options["preset"] == "laptop" and dropped == ["epochs"]
    with pytest.raises(ArgumentError, match="no method has an argument 'sise'"):
        detector_options(protocol, each, "laptop", card, None, {"sise": 1})
    with pytest.raises(ArgumentError, match="'dae' has no argument 'depht'"):
        detector_options(protocol, each, "laptop", card, None, {"dae": {"depht": 1}})


def test_a_baseline_without_the_preset_takes_the_budgets():
    protocol = load("local")
    each = protocol.expanded()[0]
    for name in ("mean_image", "image_statistics"):
        options, _ = detector_options(protocol, each, "laptop", registry.card(name), "lite0", {})
        assert options["preset"] == "laptop"
    options, _ = detector_options(protocol, each, "laptop", registry.card("padim"), "lite0", {})
    assert options["preset"] == "lite0"
    with pytest.raises(ArgumentError, match="has no preset 'lite0'"):
        detector_options(protocol, each, "laptop", registry.card("dae"), "lite0", {})


def test_a_protocol_preset_of_a_method_goes_first():
    protocol = load("medianomaly")
    rsna = protocol.expanded()[0]
    options, _ = detector_options(protocol, rsna, "paper", registry.card("ae_u"), None, {})
    assert options["preset"] == "medianomaly"
    options, _ = detector_options(protocol, rsna, "paper", registry.card("dae"), None, {})
    assert options["preset"] == "paper" and options["reduction"] == "mean"


# ------------------------------------------------------------------------ data


def test_missing_data_say_what_and_how(tmp_path):
    rsna = load("bmad").expanded()[4]
    with pytest.raises(MissingDataError) as error:
        prepare_set(rsna, Data.parse(str(tmp_path)), tmp_path / "sets")
    recipe = load_recipe("rsna")
    for text in (recipe.name, recipe.how, str(tmp_path / "rsna"), "normscan datasets show rsna"):
        assert text in str(error.value)
    brain = load("bmad").expanded()[0]
    with pytest.raises(MissingDataError, match="bmad_brain=FOLDER"):
        prepare_set(brain, Data(), tmp_path / "sets")

    (tmp_path / "rsna").mkdir()
    listed = load("medianomaly").expanded()[0]
    with pytest.raises(MissingDataError, match=re.escape(str(tmp_path / "rsna" / "data.json"))):
        prepare_set(listed, Data.parse(str(tmp_path)), tmp_path / "sets")


def test_a_recipe_is_prepared_once_and_other_data_are_refused(tmp_path, rng):
    from PIL import Image

    for copy in ("one", "two"):
        for path in ("train/good/img/1", "train/good/img/2", "valid/good/img/3", "test/good/img/4",
                     "test/Ungood/img/5"):  # fmt: skip
            file = tmp_path / copy / f"{path}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(file)
    resc = load("bmad").expanded()[2]
    table = prepare_set(resc, Data.parse(f"resc={tmp_path / 'one'}"), tmp_path / "sets")
    cohort = Cohort.read(table)
    assert sorted(cohort.table["split"]) == ["test", "test", "train", "train", "val"]
    before = table.stat().st_mtime_ns
    prepare_set(resc, Data.parse(f"resc={tmp_path / 'one'}"), tmp_path / "sets")
    assert table.stat().st_mtime_ns == before
    two = Data.parse(f"resc={tmp_path / 'two'}")
    with pytest.raises(OutputError, match="other data or settings"):
        prepare_set(resc, two, tmp_path / "sets")
    prepare_set(resc, two, tmp_path / "sets", redo=True)
    assert "two" in Cohort.read(table).table["path"][0] or "two" in table.read_text()


def test_a_set_of_two_data_sets_trains_on_one_and_tests_on_the_other(tmp_path, rng):
    import nibabel as nib

    def write(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), path)

    for number in range(3):
        name = f"sub-CC11003{number}"
        for contrast in ("T1w", "T2w"):
            file = tmp_path / "camcan" / name / "anat" / f"{name}_{contrast}.nii.gz"
            write(file, rng.random((12, 12, 18)))
    lesion = np.zeros((12, 12, 18))
    lesion[4:6, 4:6, 16] = 1
    folder = tmp_path / "atlas1" / "Site1" / "031768" / "t01"
    write(folder / "031768_t1w_deface_stx.nii.gz", rng.random((12, 12, 18)))
    write(folder / "031768_LesionSmooth_stx.nii.gz", lesion)
    atlas = load("upd_study").expanded()[0]
    cohort = Cohort.read(prepare_set(atlas, Data.parse(str(tmp_path)), tmp_path / "sets"))
    table = cohort.table
    assert sorted(table["split"].unique()) == ["test", "train", "val"]
    assert (table["label"][table["split"] != "test"] == 0).all()
    test = cohort.part("test").table
    assert list(test["label"]) == [0, 1, 0] and list(test["slice"].astype(int)) == [15, 16, 17]
    assert "T2w" not in "".join(table["path"]) and len(table) == 3 * 3 + 3
    masks = [row.load_mask(row.load()).sum() for row in cohort.part("test")]
    assert masks == [0, 4, 0]


def test_parts_are_joined_without_mixing_their_subjects(tmp_path, toy):
    one = Cohort.read(toy(2))
    one = one.select(one.table["split"] != "extra")
    healthy = one.select(one.table["split"].isin(["train", "val"]))
    whole = joined([healthy, one.part("test")], "both")
    assert len(whole) == len(one) and whole.table["scan"].is_unique
    whole.write(tmp_path / "both.csv")
    again = Cohort.read(tmp_path / "both.csv")
    assert [r.load().data.sum() for r in again.part("test")] == [
        r.load().data.sum() for r in one.part("test")
    ]
    assert [r.mask is not None for r in again] == [r.mask is not None for r in whole]


def test_local_cohorts_are_named_by_their_folder(tmp_path, toy):
    table = toy(2)
    sets = local_sets(load("local"), Data.parse(f"{table},mine={table}"))
    assert [s.id for s in sets] == [table.parent.name, "mine"]
    with pytest.raises(ArgumentError, match="--data"):
        local_sets(load("local"), Data())
    with pytest.raises(ArgumentError, match="isn't there"):
        Data.parse("/nothing/here")
    with pytest.raises(ArgumentError, match="can't name a folder"):
        local_sets(load("local"), Data.parse(f"../up={table}"))


# ------------------------------------------------------------------------ plan


def test_a_plan_has_a_cell_for_each_method_set_and_seed(tmp_path, toy):
    data = Data.parse(f"a={toy(2)},b={toy(2)}")
    plan = make_plan(load("local"), ["dae"], tmp_path, data, seeds=3, arguments={})
    cells = [(j.method, j.seed, s) for j in plan.jobs for s in j.cells]
    baselines = [(m, 0, s) for m in ("mean_image", "image_statistics") for s in "ab"]
    assert sorted(cells) == sorted([("dae", k, s) for k in range(3) for s in "ab"] + baselines)
    with pytest.raises(ArgumentError, match="no set 'c'|set 'c'"):
        make_plan(load("local"), ["dae"], tmp_path, data, sets=["c"], arguments={})
    with pytest.raises(ArgumentError, match="has no budget 'papers'"):
        make_plan(load("local"), ["dae"], tmp_path, data, budget="papers", arguments={})


def test_one_model_for_a_group_trains_on_all_its_sets(tmp_path, toy):
    sets = [
        {"id": name, "group": "g", "parts": [{"folder": name, "get": "?"}]} for name in ("a", "b")
    ]
    protocol = small(sets=sets, together=True)
    shutil.copytree(toy(2).parent, tmp_path / "copy")
    data = Data.parse(f"a={toy(2)},b={tmp_path / 'copy'}")
    plan = make_plan(protocol, ["dae"], tmp_path, data, seeds=1, arguments={})
    assert [sorted(j.cells) for j in plan.jobs] == [["a", "b"]] * 3
    both = Cohort.read(plan.jobs[0].table)
    assert len(both) == 2 * 54 and set(both.table["split"]) == {"train", "val"}
    plan = make_plan(protocol, ["dae"], tmp_path, Data.parse(f"a={toy(2)}"), arguments={})
    assert not plan.jobs and "shares a model with b" in plan.missing["a"]


def test_a_cell_belongs_to_its_settings_and_data(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,label\n")

    def job(seed=0, device="cpu", **detector):
        return Job(
            "dae", seed, detector, str(table), "r", {"a": "c"}, {"a": str(table)}, device=device
        )

    first = job(fpr=0.05).digest("a")
    assert job(fpr=0.05, device="cuda").digest("a") == first
    assert len({first, job(fpr=0.1).digest("a"), job(1, fpr=0.05).digest("a")}) == 3
    table.write_text("path,label\nx,0\n")
    assert job(fpr=0.05).digest("a") != first


@pytest.mark.parametrize("which", ["path", "mask"])
def test_a_cell_belongs_to_the_images_that_its_table_names(toy, tmp_path, which):
    """Other images, or other masks, of the same names make other cells."""
    source = toy(2)
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    for column in ("path", "mask"):
        for n, name in enumerate(table[column]):
            if name:
                (tmp_path / f"{column}{n}.npy").write_bytes((source.parent / name).read_bytes())
                table.loc[n, column] = f"{column}{n}.npy"
    table.to_csv(tmp_path / "c.csv", index=False)

    def states():
        data = Data.parse(f"a={tmp_path / 'c.csv'}")
        plan = make_plan(
            load("local"), ["mean_image"], tmp_path / "out", data, arguments={}, seeds=1
        )
        return plan.jobs[0], next(iter(plan.jobs[0].cells))

    job, name = states()
    write_json(Path(job.cells[name]) / "error.json", {"digest": job.digest(name)})
    assert job.state(name) == states()[0].state(name) == "failed"
    changed = tmp_path / next(n for n in reversed(list(table[which])) if n)
    np.save(changed, 1 - np.load(changed))
    assert states()[0].state(name) == "other"


# ---------------------------------------------------------------------- ledger


def test_the_ledger_holds_the_printed_figures_once():
    found = targets()
    assert len({(t.protocol, t.set, t.method, t.metric) for t in found}) == len(found)
    assert {t.protocol for t in found} <= set(protocols())
    assert published("medianomaly", "rsna", "ae_latent_16")["image_auroc"].value == 0.675
    dae = published("medianomaly", "brats21", "dae")["pixel_ap"]
    assert (dae.value, dae.sd) == (0.755, 0.007)
    assert published("bmad", "brain", "patchcore")["aupro"].value == 0.8568
    assert "pixel_auroc" not in published("bmad", "brain", "f_anogan")
    assert published("ader", "uni_medical", "rd4ad")["mad"].value == 0.703
    assert published("normative_metrics", "atlas_large", "phanes")["unnamed"].value == 0.544
    assert published("nothing", "rsna", "dae") == {}


@pytest.mark.parametrize("method", ["rd4ad", "uniad", "cflow", "draem"])
def test_the_printed_mad_is_the_mean_of_the_printed_seven(method):
    row = published("ader", "uni_medical", method)
    seven = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "ader_pixel_f1")
    mean = np.mean([row[name].value for name in (*seven, "ader_aupro")])
    assert mean == pytest.approx(row["mad"].value, abs=0.0011)


def test_targets_of_shipped_sets_name_metrics_that_their_protocol_computes():
    for target in targets():
        protocol = load(target.protocol)
        places = {s.id for s in protocol.expanded()} | {s.group for s in protocol.expanded()}
        if target.set in places and target.metric not in ("ader_iou_max", "mad"):
            assert target.metric in protocol.shown, target


# -------------------------------------------------------------------- writing


def test_the_diagram_shows_every_method_and_the_bar(tmp_path):
    test = {
        "methods": ["best", "b_2", "last<>"], "mean_ranks": [1.2, 2.0, 2.8], "groups": [[0, 1]],
        "critical_difference": 1.1, "friedman_p": 0.01, "alpha": 0.05, "sets": 5,
    }  # fmt: skip
    svg = critical_difference(test, tmp_path / "cd.png")
    assert svg.startswith("<svg") and "currentColor" in svg
    for text in ("best  1.20", "b_2  2.00", "2.80  last&lt;&gt;", "CD 1.10"):
        assert text in svg
    assert (tmp_path / "cd.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cd.pdf").read_bytes().startswith(b"%PDF")
    rows = list(csv.DictReader(ranks_as_csv(test).splitlines()))
    assert [row["method"] for row in rows] == test["methods"]
    assert [float(row["mean_rank"]) for row in rows] == test["mean_ranks"]
    for number, (first, last) in enumerate(test["groups"], 1):
        under = [k for k, row in enumerate(rows) if str(number) in row["not_different_in"].split()]
        assert under == list(range(first, last + 1))
    assert critical_difference(test) == svg


def test_latex_is_escaped():
    assert escaped("a_b & 5 % ± <x\\") == r"a\_b \& 5 \% $\pm$ $<$x\textbackslash{}"


def test_the_command_line_lists_and_shows(capsys):
    from normscan.cli.main import main

    assert main(["benchmark"]) == 0
    listed = capsys.readouterr().out
    assert all(id in listed for id in protocols())
    assert main(["benchmark", "ader", "--show"]) == 0
    assert "one model for all" in capsys.readouterr().out
    assert main(["benchmark", "local"]) == 2
    assert "name methods" in capsys.readouterr().err
    assert main(["benchmark", "bmad", "--methods", "dae", "--out", "/nonexistent/x"]) == 2
    said = capsys.readouterr().err
    assert "no set of 'bmad' can be run" in said and "oct2017" in said
    assert not Path("/nonexistent").exists()
