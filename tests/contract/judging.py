"""What a trained toy detector has learnt: how well its map finds lesions of every kind.

The verdict is one number, so that its spread over seeds and processors can be known:
``benchmarks/toy_margins.py`` measures it and writes ``margins.csv``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tests.support.needs import batch_for
from tests.toy import KINDS, Kind

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.methods.base import Batch, Method
from normscan.registry import card
from normscan.rng import Rng

# The toy images are in known units: their own scale is part of what is learnt.
AS_THEY_ARE = {"scaling": "none", "crop": "none"}

# Margin of AUROC that a verdict must keep in every run of ``margins.csv``.
LEAST = 0.03

# Kinds of lesions that a method's map can show by its definition, where it isn't all of them.
POSITIVE = "its residual is positive where a lesion is brighter than healthy tissue, else nothing"
SHOWS: dict[str, tuple[tuple[Kind, ...], str]] = {
    "ae_dense": (("bright",), POSITIVE),
    "ae_spatial": (("bright",), POSITIVE),
    "ano_vae_gan": (("bright",), POSITIVE),
    "bayesian_skip_ae": (("bright",), POSITIVE),
    "caae_baur": (("bright",), POSITIVE),
    "constrained_ae": (("bright",), POSITIVE),
    "feddis": (("bright",), POSITIVE),
    "healthy_anatomy_ae": (("bright",), POSITIVE),
    "scale_space_ae": (("bright",), POSITIVE),
    "steganomaly": (("bright",), POSITIVE),
    "vae": (("bright",), POSITIVE),
    "ood_blind_spot": (("bright",), POSITIVE),
    "strega": (("bright",), POSITIVE),
    "unsup_sup_fusion": (("bright",), "its pseudo-labels are bright components"),
    "simplenet": (("bright", "iso"), "it knows no place: dark tissue is healthy wherever it lies"),
}

# Methods that the toy can't judge within seconds, and why; that their loss falls is checked instead.
# Their rows in ``margins.csv`` say how far they come.
FINDINGS: dict[str, str] = {
    "adnas_3d": "as draem, and a lesion of the toy shows in one of its two modalities alone",
    "adversarial_inpainting": "sixty updates fill holes with what lies around them; with twice as many "
    "and more channels it finds every kind",
    "amcons": "its map is how strongly early features respond, which follows intensity, trained or not",
    "aa_clip": "linear layers on the tokens of a random tower, half of them trained by a loss whose "
    "gradient is large only where sentences already differ: eighty updates bring it to the mean image",
    "anomaly_any": "its Stable Diffusion and its CLIP are random here: what they paint is no anomaly",
    "anomalyclip": "only the words of two sentences learn, and patches of a random tower offer them "
    "little to tell apart",
    "asn_microcalc": "its map is 0 outside candidates, and which pixels these are after some hundred "
    "updates hangs on the seed and the processor",
    "autoddpm": "what it paints anew hangs on features of an untrained network, and with some seeds its "
    "sixty updates leave little of the difference",
    "bayesian_skip_ae": "its skips copy a bright spot nearly as well as what lies around it",
    "brain_asymmetry": "the toy's heads lie off the middle, so that the halves of all of them differ",
    "brain_lesion_gan": "how its game stands after seconds hangs on the seed: with one of three its "
    "discriminator doubts healthy patches more than others",
    "caae": "its residual blocks and its critic learn in minutes, not in seconds",
    "caae_baur": "its codes are held to a normal distribution before it restores, as in caae",
    "chronic_infarct": "patches of 15 pixels show where tissue changes, not that a soft spot is in the "
    "wrong place, and its codes come apart at edges first",
    "conditional_vae": "with one seed of three, seconds of training leave it below the mean image",
    "cgv_mood": "on eight volumes its rate, which rises a hundredfold, lets some runs forget again what "
    "they had found",
    "cradl": "the gradient of a density is largest where a head's edges move it; seconds of contrast "
    "bring that hardly above the mean image",
    "ddad": "its ensembles differ by what 1,600 updates and more teach them of the unlabelled lesions",
    "ddad_asr": "its ensembles are those of ddad",
    "dif_fuse": "its classifier learns the toy in minutes; till then saliency and mask are anywhere",
    "draem": "it learns planted textures; whether it finds soft spots too hangs on the seed",
    "dual_ano_diff": "its Stable Diffusion is random here, and what it generates after seconds is noise",
    "fae": "its map is how unlike the structure of features is, which an untrained restoration shows "
    "as well: edges of lesions are structure",
    "fixed_point_gan": "translator and critic take minutes; after seconds it is hardly above the mean "
    "image with one seed of three",
    "fpi": "a hundred updates teach it squares of other heads; soft spots it finds with some seeds only",
    "fsad_net": "it scores scans only, of which the toy has 24, and knows 18 anomalies",
    "gating_ano": "with channels enough to restore, its U-Net takes minutes; with one it is blurred",
    "glance_patch": "what it expects of a patch after sixty updates of each stage hangs on the seed, and "
    "distances to an untrained teacher's code find as much with some",
    "gmvae_restoration": "as vae_restoration",
    "healthy_anatomy_ae": "its skips copy a bright spot, as those of bayesian_skip_ae",
    "img_cond_ddpm": "from pure noise its few steps restore a blur till it has seen thousands of images",
    "inter_slice": "a hundred updates on eight volumes bring it hardly above an untrained network; twice "
    "as many, by less than a robust margin",
    "latent_dissimilarity_vae": "it scores scans only, of which the toy has 24, and slightly better "
    "than chance with some seeds",
    "ldm_brain": "which codes exceed their limit after sixty updates hangs on the seed; often none does",
    "local_gaussian_ascent": "as vae_restoration, with norms, but with seconds of training and steps",
    "many_tasks": "thirty updates teach it changes of intensity and squeezed tissue, not yet soft spots",
    "meta_detector": "as fpi, whose squares it learns in still fewer updates",
    "mkd": "random features leave a cloner that is narrower than they are far from them at edges, "
    "trained or not",
    "mmrad": "as draem, and the patches of a random encoder, which stays as it is, offer its decoder "
    "little to learn from",
    "mvfa": "with one seed of three, sixty updates on the tokens of a random tower bring it above the "
    "mean image by less than a robust margin",
    "nsa": "ninety updates bring it above the mean image by less than a robust margin: it learns "
    "patches with other contents, and a spot of the same tissue is close to those",
    "octa_layers": "it knows boundaries of layers that lie one below the other, which the toy's round "
    "tissues don't have; on simulated retinas it is judged in benchmarks/results/adversarial.md",
    "one_to_normal": "its Stable Diffusion and its CLIP are random here, and few images make them no better",
    "outlier_exposure": "it learns what tells fainter heads and textures from healthy scans; soft spots are "
    "like neither",
    "phanes": "its map is 0 outside the holes that its autoencoder asks for, and which these are after "
    "forty updates hangs on the seed",
    "p_net": "two networks that take minutes each; after seconds its restoration is hardly more than "
    "the structures' outlines",
    "pii": "as fpi, and its patches have no edge that would be learnt first",
    "prn": "thirty updates teach it textures, and that most pixels are healthy; soft spots it finds hardly "
    "above the mean image",
    "pseudoanomaly_3d": "in its first updates the price of misses is all that counts: with hundreds it "
    "finds every kind, with eighty hardly any",
    "seebock_epistemic": "a spot that looks like another tissue is segmented as that one, without doubt; "
    "on simulated retinas it is judged in benchmarks/results/adversarial.md",
    "siamese_ocsvm": "one-class machines on the codes of random patches find as much on this toy",
    "simclip": "its linear layers begin at random, and with one seed of three they find more on the "
    "tokens of a random tower before they learn than after sixty updates",
    "salad": "its code of a whole image tells where a head lies and how large it is, and hardly a small "
    "spot",
    "ss3d": "it has eight volumes to fit, random features, and the least of three profiles for a map",
    "simsid": "as squid",
    "sparse_gan": "a place of its code covers 16 of the toy's pixels, and its code is sparse after minutes",
    "squid": "its score is its discriminator's; the map beside it is of restorations that after seconds "
    "are blurred where patches have no skips, and copies where they have",
    "vae_kl_grad": "the constant in its map leaves the gradient nearly alone, and that is largest at "
    "edges of the healthy heads, trained or not",
    "vae_restoration": "its network has no norms: after seconds it restores the same head for all, and "
    "how far an image is moved towards that hangs on the seed",
    "vqvae_transformer": "its map is 0 but where codes are unlikely, which its transformers tell after "
    "minutes, not seconds",
    "wolleb_ddim": "its classifier learns the toy in minutes; till then the gradient leads nowhere",
}


# Methods of which few updates leave nothing to see, and how many they take at least: behind the batch
# norms of these segmenters all images are alike till their running statistics have moved.
LONGER = {"draem": 8, "dual_ano_diff": 8}

DISPUTED = ("adversarial", "real", "fake", "wasserstein", "penalty")


@dataclass(frozen=True)
class Verdict:
    """Mean AUROC over the kinds of lesions: trained, untrained (median), of the mean image."""

    trained: float
    untrained: float
    mean_image: float

    @property
    def margin(self) -> float:
        """By how much the trained detector is above both others."""
        return self.trained - max(self.untrained, self.mean_image)


def detector(method: str, dims: int, steps: int | None = None, **options) -> Detector:
    """An unfitted tiny detector; ``steps`` shortens every phase that counts in steps."""
    arguments: dict[str, int] = {"dims": dims}
    if steps is not None:
        steps = max(steps, LONGER.get(method, 0))
        tiny = card(method).arguments("tiny")
        counted = [a for a in tiny if a == "steps" or a.endswith("_steps")]
        arguments |= {a: steps if tiny[a] is None else min(steps, tiny[a]) for a in counted}
        if "batch_size" in tiny:
            arguments["batch_size"] = min(4, tiny["batch_size"])
    if dims == 3 and "batch_size" in card(method).defaults:
        arguments["batch_size"] = 2
    # Odd sizes and constant images must reach the method, and one fit is enough.
    options = {"gate": False, "calibration": "split", **options}
    return Detector(method, preset="tiny", preprocess=AS_THEY_ARE, **arguments, **options)


def batch(det: Detector, n: int = 3, seed: int = 0, method: Method | None = None) -> Batch:
    """Random images that fit a detector's method, or, to train with, one of its arguments."""
    asked = method or det.method
    assert asked is not None
    shape = (det.arguments["size"],) * det.arguments["dims"]
    return batch_for(asked, n, det.arguments["channels"], shape, seed, method is not None)


def quality(det: Detector, test: Cohort, kinds: Sequence[Kind] = KINDS) -> float:
    """Mean AUROC of pixels (of scans where there is no map) over the kinds of lesions.

    Each kind's lesions stand against the healthy foreground of all test scans.
    """
    inside: dict[str, list[np.ndarray]] = defaultdict(list)
    outside = []
    for row, finding in det.predict_cohort(test, details=True):
        kind = row.columns.get("kind")
        if finding.map is None:
            (inside[kind] if row.label else outside).append(np.array([finding.score]))
            continue
        mask = row.load_mask(finding.scan)
        outside.append(finding.map[finding.foreground & ~mask])
        if row.label:
            inside[kind].append(finding.map[mask])
    healthy = np.hstack(outside)
    found = []
    for kind in kinds:
        lesion = np.hstack(inside[kind])
        labels = np.r_[np.ones(len(lesion)), np.zeros(len(healthy))]
        found.append(roc_auc_score(labels, np.r_[lesion, healthy]))
    return float(np.mean(found))


def axes(method: str) -> int:
    """Axes of the scans that it is judged on: 2 where it can, which is quicker."""
    return min(card(method).dims)


def judge(method: str, cohort: Cohort, seed: int = 0, quick: bool = False) -> Verdict:
    """Train a tiny detector and compare it with untrained ones and with the mean image.

    Untrained ones are three, of which the median counts; if ``quick``, the first one is enough where
    the trained one is safely above it.

    A closed form can't be untrained: it is fitted to noise instead. The mean image has the same
    scans, without what stands beside them.
    """
    test = cohort.part("test")
    kinds = SHOWS[method][0] if method in SHOWS else KINDS
    dims = axes(method)
    det = detector(method, dims, seed=seed).fit(cohort)
    trained = quality(det, test, kinds)
    before = []
    for other in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(100 * seed + other)
            raw: Method = card(method).create(**det.arguments).eval()
        if not raw.phases():
            noise = [dataclasses.replace(batch(det, 8, s, raw), rng=Rng(s)) for s in range(3)]
            raw.fit(iter(noise))
        det.method = raw
        before.append(quality(det, test, kinds))
        if quick and trained - before[0] > LEAST:
            break
    return Verdict(trained, float(np.median(before)), _mean_image(cohort.root, dims, kinds))


@functools.cache
def _mean_image(root: Path, dims: int, kinds: tuple[Kind, ...]) -> float:
    """The quality of the mean image on the cohort in a folder, one for all methods."""
    cohort = Cohort.read(root / "cohort.csv").alone()
    return quality(detector("mean_image", dims).fit(cohort), cohort.part("test"), kinds)


def falls(log: Path) -> dict[str, float]:
    """By what share of its size each phase's loss falls, without what adversaries dispute.

    Args:
        log: ``log.jsonl`` of a run folder.
    """
    losses: dict[str, list[float]] = defaultdict(list)
    for line in map(json.loads, log.read_text().splitlines()):
        terms = {k.partition("/")[2]: v for k, v in line["terms"].items()}
        kept = [v for k, v in terms.items() if k not in DISPUTED]
        # Where players do nothing but dispute, the one who judges learns first.
        kept = kept or [v for k, v in terms.items() if k in ("real", "fake")]
        losses[line["phase"]].append(sum(kept))
    result = {}
    for phase, values in losses.items():
        part = max(1, len(values) // 10)
        first, last = np.mean(values[:part]), np.mean(values[-part:])
        result[phase] = float((first - last) / abs(first))
    return result
