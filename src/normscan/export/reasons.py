"""Methods that have no graph, and why: the one place that says so."""

from __future__ import annotations

GRADIENTS = "its map takes gradients of its networks at each image, and a graph runs forwards only"
_WALK = (
    "it walks through a diffusion, step by step with noise of its own, and a graph of all steps takes "
    "minutes to write and runs slower than torch"
)
FURTHER = (
    "it looks at further images of a case, each of a shape of its own, and a graph takes one image"
)
_SIMPLEX = "its simplex noise is gathered and scattered by drawn tables, which graphs lack"

REASONS: dict[str, str] = {
    **dict.fromkeys(
        (
            "anogan", "beta_vae_loc", "caad", "ce_vae", "cradl", "devnet", "dif_fuse",
            "gmvae_restoration", "high_low_vae",
            "implicit_field", "local_gaussian_ascent", "mkd", "vae_kl_grad", "vae_restoration",
            "wolleb_ddim",
        ),
        GRADIENTS,
    ),
    **dict.fromkeys(
        (
            "anoddpm", "autoddpm", "coarse_noise_ddpm", "img_cond_ddpm", "ldm_brain", "mmccd",
            "one_to_normal", "thor",
        ),
        _WALK,
    ),
    **dict.fromkeys(("annotsim", "mddpm", "pddpm"), _SIMPLEX),
    "anomaly_dino": "it seeks its neighbours in bfloat16, which onnxruntime doesn't sort on a processor",
    "asn_microcalc": "it cuts out and judges candidates, as many as an image has",
    "auto": "between its members it ranks and weighs with numpy, which is no part of a graph",
    "brain_asymmetry": "it draws the regions of each image anew with numpy, which is no part of a graph",
    "glance_patch": "it blanks windows of each image by their indices, which the exporter can't write",
    "hist_threshold_baseline": "it counts a histogram of each image, which graphs lack",
    "meta_detector": "it learns anew from its references, which takes gradients",
    "mmrad": FURTHER,
    "octa_layers": "it takes running maxima down each column, which graphs lack",
    "ood_blind_spot": "its score is a density of few healthy values, which makes much of the rounding of "
    "a graph",
    "phanes": "it marks what is to be painted anew with SciPy, which is no part of a graph",
    "qsco": "its state vectors are complex numbers, which graphs lack",
    "ra": "it equalises and smooths with scikit-image and SciPy, which are no part of a graph",
    "ukb_outlier_ae": "it adds up its regions by their labels, image by image, which graphs lack",
    **dict.fromkeys(
        ("simsid", "squid"),
        "its score is an answer in deviations of healthy answers, which may be as small as the rounding "
        "of a graph",
    ),
    "vqvae_transformer": "it draws codes anew one after the other, each from what was drawn before",
}  # fmt: skip
