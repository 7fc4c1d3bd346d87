"""Pseudo-labels from an autoencoder, their threshold, and what the segmentation learns from."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from torch import nn

from normscan.cohort import Cohort
from normscan.errors import ArgumentError
from normscan.methods.autoencoders.fusion import Threshold
from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "with_extra.py"


def built(**arguments):
    torch.manual_seed(0)
    entry = card("unsup_sup_fusion")
    values = entry.arguments("tiny", size=16, **arguments)
    return entry.create(**values).eval()


def batch(n=3, size=16, **more):
    x = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))
    inside = torch.ones(n, 1, size, size, dtype=torch.bool)
    inside[..., :3] = False
    return Batch(x, inside, Rng(0), torch.full((n,), 0.5), **more)


def test_threshold_becomes_the_mean_of_what_it_sees(rng):
    values = torch.from_numpy(rng.uniform(size=(7, 4))).float()
    threshold = Threshold()
    (player,) = threshold.phase("threshold", 7, 4).players
    optimizer = player.optimizer(threshold.parameters())
    for step, seen in enumerate(values):
        optimizer.param_groups[0]["lr"] = player.schedule(step, 7)
        optimizer.zero_grad()
        threshold.loss(seen).backward()
        optimizer.step()
        assert threshold.value.item() == pytest.approx(values[: step + 1].mean().item(), rel=1e-5)


def test_threshold_loss_is_of_the_healthy_quantiles():
    method, images = built(quantile=0.9), batch()
    loss = method.loss(images, "threshold", "threshold")["quantile"].item()
    maps = method.residual(images)
    quantiles = [
        np.quantile(m[f].numpy(), 0.9) for m, f in zip(maps, images.foreground, strict=True)
    ]
    assert loss == pytest.approx(0.5 * np.mean(np.square(quantiles)), rel=1e-5)
    assert min(quantiles) > 0


def test_residual_is_what_is_brighter_cleaned():
    method, images = built(cleaning=("hyperintense=0.6", "median=3")), batch()
    method.restorer = nn.Identity()
    method.restorer.forward = lambda x: x - 0.2 + 0.4 * (x > 0.5)
    found = method.residual(images)[:, 0].numpy()
    for x, r in zip(images.image[:, 0].numpy(), found, strict=True):
        prior = x >= np.quantile(x, 0.6)
        raw = np.maximum(0.2 - 0.4 * (x > 0.5), 0) * prior
        np.testing.assert_allclose(r, ndimage.median_filter(raw, 3), atol=1e-6)


def test_an_image_without_foreground_teaches_nothing_wrong():
    method, images = built(), batch()
    images.foreground[1] = False
    assert not method.residual(images)[1].any()
    assert torch.isfinite(method.loss(images, "threshold", "threshold")["quantile"])


def fixed(method, values, threshold):
    """The method with a given map and threshold."""
    method.residual = lambda batch: values
    with torch.no_grad():
        method.threshold.value.fill_(threshold)
    return method


def test_pixels_near_the_threshold_do_not_count():
    values = torch.tensor([0.0, 0.7, 0.76, 1.0, 1.2, 1.26]).reshape(1, 1, 1, 6)
    mask, weight = fixed(built(band=0.25, pseudo_weight=0.4), values, 1.0).labels(batch(1))
    assert mask.flatten().tolist() == [False, False, False, False, True, True]
    torch.testing.assert_close(weight.flatten(), torch.tensor([0.4, 0.4, 0, 0, 0, 0.4]))


def test_given_labels_come_before_pseudo_labels():
    """Of four scans: not told, healthy, anomalous with and without a drawn lesion."""
    lesion = torch.zeros(4, 1, 2, 2, dtype=torch.bool)
    lesion[2, 0, 0, 0] = True
    images = batch(4, label=torch.tensor([-1, 0, 1, 1]), lesion=lesion)
    method = fixed(built(pseudo_weight=0.5), torch.full((4, 1, 2, 2), 9.0), 1.0)
    mask, weight = method.labels(images)
    expected = torch.stack([~lesion[0], lesion[1], lesion[2], ~lesion[3]])
    assert torch.equal(mask, expected)
    assert weight[:, 0, 0, 0].tolist() == [0.5, 1.0, 1.0, 0.5]
    alone, _ = method.labels(batch(4, lesion=lesion))
    assert alone.all()


def test_phases_draw_what_they_are_told():
    assert [p.part for p in built().phases()] == ["healthy", "healthy", "unlabelled"]
    assert built(labelled=True).phases()[-1].part == "unlabelled+anomalous"


def test_segmenting_trains_the_segmenter_alone():
    method = built()
    sum(method.loss(batch(), "segment", "network").values()).backward()
    reached = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
    assert reached == {"segmenter"}


def test_wrong_cleaning_shows_at_once():
    with pytest.raises(ArgumentError, match="medain"):
        built(cleaning=("medain=3",))


# --- the table with unlabelled scans


def test_test_scans_move_to_extra_by_subject(tmp_path):
    with_extra = runpy.run_path(str(SCRIPT))["with_extra"]
    rows = []
    for i in range(40):
        (tmp_path / f"{i}.npy").write_bytes(bytes([min(i, 38)]))  # 38 and 39 are copies
        split = "train" if i < 10 else "val" if i < 12 else "test"
        label = int(split == "test" and i % 2)
        rows.append((f"{i}.npy", f"p{i // 2}" if i >= 20 else f"q{i}", label, split))
    table = pd.DataFrame(rows, columns=["path", "subject", "label", "split"])
    table.to_csv(tmp_path / "cohort.csv", index=False)
    before = Cohort.read(tmp_path / "cohort.csv")
    after = with_extra(before, 0.5, seed=3)
    again = Cohort.read(after.write(tmp_path / "elsewhere.csv"))
    for row in again:
        assert row.paths[0].exists()
    # q12..q19 are four healthy and four anomalous subjects; p10..p19 hold one scan of each.
    moved = {r.subject for r in again.part("extra")}
    stays = {r.subject for r in again.part("test")}
    assert not moved & stays
    assert sum(s in moved for s in ("q12", "q14", "q16", "q18")) == 2
    assert sum(f"q{i}" in moved for i in (13, 15, 17, 19)) + sum(s[0] == "p" for s in moved) == 7
    assert [r.split for r in again if r.split in ("train", "val")] == ["train"] * 10 + ["val"] * 2
    assert [r.split for r in with_extra(before, 0.5, seed=3)] == [r.split for r in after]
    assert [r.split for r in with_extra(before, 0.5, seed=4)] != [r.split for r in after]
    assert len(with_extra(before, 0.0).part("extra")) == 0
