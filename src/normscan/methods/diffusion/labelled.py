"""Counterfactuals of diffusion models that learn from image labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.diffusion.engine import (
    LaidTraining,
    PartialDiffusion,
    Process,
    diffusion_phase,
    gaussian_field,
    laid,
    layout_of,
    training,
    training_of,
)
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.counterfactual import NoisyClassifier, ShallowAutoencoder
from normscan.networks.diffusion import (
    DiffusionSchedule,
    Guess,
    Walker,
    gaussian_divergence,
    guided,
    linear_betas,
)
from normscan.networks.guided import GuidedUNet, Layout, attended
from normscan.networks.taps import import_timm
from normscan.progress import steps_of
from normscan.registry import register
from normscan.signatures import Options

BIN = 1 / 255  # half the width of a grey value of 8 bits in -1..1
HEALTHY = 0


def binned_log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability of the grey value of 8 bits under a normal distribution, element by element.

    Args:
        x: from -1 to 1; the outermost values take the tails.
        mean: like x.
        log_deviation: like x.
    """

    def below_value(at: Tensor) -> Tensor:
        # The released approximation of the distribution function; it differs in the tails.
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (at + 0.044715 * at**3)))

    slope = torch.exp(-log_deviation)
    above = below_value(slope * (x - mean + BIN))
    below = below_value(slope * (x - mean - BIN))
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return inside.clamp_min(1e-12).log()


class LabelledDiffusion(PartialDiffusion):
    """Encodes images by DDIM and walks back otherwise; see its two kinds."""

    def encoded(self, x: Tensor, walker: Walker) -> Tensor:
        """From the image up to the level, the network being told steps from the second one on."""
        return walker.up(x, start=1)

    def ladder(self, x: Tensor) -> DiffusionSchedule:
        """The steps up to the level, and the one above, at which the releases begin to walk down."""
        p = self.process
        return self.schedule.shortened(p.level + 1, p.sample_steps).to(x.device)


class ClassifierGuided(LabelledDiffusion):
    """Encodes an image, decodes it as healthy under a classifier's gradient.

    Args:
        classifier: noisy images and steps to two logits, the first one healthy.
        classifying: classifier to its phase of training.
        scale: of the gradient.
    """

    needs_grad = True

    def __init__(
        self, *parts: Any, classifier: nn.Module, classifying: Callable[[nn.Module], Phase],
        scale: float,
    ) -> None:  # fmt: skip
        super().__init__(*parts)
        self.classifier, self._classifying, self.scale = classifier, classifying, scale

    def phases(self) -> list[Phase]:
        return [self._classifying(self.classifier), *super().phases()]

    def bits(self, x: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, said: Tensor) -> Tensor:
        """The variational bound at the steps t in bits for each pixel, (B,).

        Args:
            x: images.
            noisy: at the steps t.
            t: (B,) steps.
            noise: that the network says is in them.
            said: of the variance, see ``DiffusionSchedule.log_variance``.
        """
        s = self.schedule
        mean = s.posterior_mean(s.clean(noisy, t, noise), noisy, t)
        log_variance = s.log_variance(said, t)
        true = s.posterior_mean(x, noisy, t), s.table("posterior", t, x).log()
        apart = gaussian_divergence(*true, mean, log_variance).flatten(1).mean(1)
        first = -binned_log_likelihood(x, mean, 0.5 * log_variance).flatten(1).mean(1)
        return torch.where(t == 0, first, apart) / math.log(2)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.label is not None
        x, _ = self.seen(batch)
        t, noise, label = self.steps(batch), batch.rng.normal(x.shape).to(x), batch.label.long()
        noisy = self.schedule.diffuse(x, t, noise)
        if phase == "classify":
            return {"class": F.cross_entropy(self.classifier(noisy, t), label.to(x.device))}
        said, variance = self.network(noisy, t, label.to(x.device)).chunk(2, dim=1)
        bits = self.bits(x, noisy, t, said.detach(), variance)
        return {"noise": (said - noise).square().mean(), "bound": bits.mean()}

    def maps(self, batch: Batch) -> Maps:
        x, cut = self.seen(batch)
        s, healthy = self.ladder(x), torch.full((len(x),), HEALTHY, device=x.device)

        def predict(noisy: Tensor, t: Tensor) -> Guess:
            with torch.no_grad():
                said = self.network(noisy, s.times[t], healthy).chunk(2, dim=1)[0]
            return s.guess("epsilon", said, noisy, t)

        def gradient(noisy: Tensor, t: Tensor) -> Tensor:
            with torch.enable_grad():
                noisy = noisy.detach().requires_grad_()
                logits = self.classifier(noisy, s.times[t])
                chosen = F.log_softmax(logits, dim=1)[:, HEALTHY].sum()
                return torch.autograd.grad(chosen, noisy)[0]

        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        start = s.diffuse(x, first, self.noise(x, first, batch))
        top = self.encoded(start, Walker(s, predict))
        steered = Walker(s, guided(s, predict, gradient, self.scale))
        restored = steered.down(top, len(s) - 2)[cut].detach()
        return Maps((x[cut] - restored).abs().sum(1, keepdim=True), reconstruction=restored)


class Encoding(LaidTraining):
    """The arguments that these methods share."""

    timesteps: int
    level: int
    sample_steps: int | None


_OWN = {"timesteps": 1000, "level": 500, "sample_steps": None}
encoding = (
    laid
    | Options(
        {name: get_type_hints(Encoding)[name] for name in _OWN},
        _OWN,
        {
            "timesteps": "steps of the schedule.",
            "level": "steps that a test image is encoded.",
            "sample_steps": "steps of each way, in even strides; None for every one.",
        },
    )
    | training
)


def labelled(
    kind: type[LabelledDiffusion], channels: int, layout: Layout, outputs: int,
    weight_decay: float, common: dict[str, Any], o: Encoding, **more: Any,
) -> Method:  # fmt: skip
    """A method of these: a U-Net that learns healthy slices or labelled ones by AdamW.

    Args:
        kind: of them.
        channels: of the image.
        layout: of the U-Net.
        outputs: its channels.
        weight_decay: of AdamW.
        common: fields of its phase.
        o: the shared arguments.
        more: arguments of the kind.
    """
    process = Process(
        o["level"], sample_steps=o["sample_steps"], multiple=layout.multiple, centred=False
    )
    fitting = functools.partial(
        diffusion_phase, "diffuse", weight_decay=weight_decay, **{**training_of(o), **common}
    )
    return kind(
        GuidedUNet(2, channels, outputs, layout), DiffusionSchedule(linear_betas(o["timesteps"])),
        gaussian_field, process, fitting, **more,
    )  # fmt: skip


@register(
    "wolleb_ddim",
    paper="Wolleb 2022",
    regime="image-labels",
    preprocess={"scaling": "percentile", "limit": 1.0},
    presets={
        "laptop": {
            "size": 64, "width": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (16,),
            "classifier_width": 16, "classifier_blocks": 1, "classifier_attention": (16,),
            "classifier_head_width": 32, "timesteps": 100, "level": 50, "classifier_steps": 300,
            "steps": 500, "lr": 1e-3, "batch_size": 8,
        },
    },
    tiny={
        "size": 32, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (16,),
        "classifier_width": 8, "classifier_blocks": 1, "classifier_attention": (16,),
        "classifier_head_width": 16, "timesteps": 20, "level": 6, "scale": 2.0,
        "classifier_steps": 30, "steps": 30, "lr": 4e-3, "batch_size": 8,
    },
    options=encoding(attention=(16,), steps=150_000, batch_size=10),
)  # fmt: skip
def wolleb_ddim(
    dims: int = 2,
    channels: int = 1,
    classifier_width: int = 32,
    classifier_blocks: int = 4,
    classifier_attention: tuple[int, ...] = (32, 16, 8),
    classifier_head_width: int = 64,
    classifier_steps: int = 150_000,
    scale: float = 100.0,
    **options: Unpack[Encoding],
) -> Method:
    """Classifier-guided DDIM: the image as it would look if it were healthy.

    Wolleb et al., MICCAI 2022: a class-conditional diffusion model with learnt variance and a
    classifier of noisy images learn from healthy and anomalous ones with their labels. An image is
    encoded by 500 deterministic DDIM steps of 1000 and decoded under the gradient of the
    classifier's log probability of healthy, 100 times the level of noise. The map is the absolute
    difference summed over the channels. As in the release, the class healthy is told on both ways,
    noise of the first step is added before, and the way up ends a step above and the way down begins
    a step below the level.

    Departures:
        length: 150,000 updates of the diffusion model, as of the classifier; the release's has no
            end. Its moving average is kept but not what its commands load, so there is none.
        map: as it is, which is what the release has; the article's threshold (Otsu) is none of ours.
        range: 0 to the 99th percentile become 0..1; the release takes files as they are.

    Args:
        dims: spatial axes, 2.
        multipliers: of both widths, one per level.
        classifier_width: channels of the classifier's first level.
        classifier_blocks: residual blocks in a level of the classifier.
        classifier_attention: as ``attention``, of the classifier.
        classifier_head_width: channels of a head of the classifier.
        classifier_steps: updates of the classifier.
        scale: of the classifier's gradient.
        lr: learning rate of AdamW without weight decay, for both.
    """
    layout = layout_of(options, scale_shift=False, resample="conv", classes=2)
    levels = attended(classifier_attention, options["size"], len(options["multipliers"]))
    looks = Layout(
        classifier_width, options["multipliers"], classifier_blocks, levels,
        head_width=classifier_head_width,
    )  # fmt: skip
    common: dict[str, Any] = {"part": "healthy+labelled", "validate_every": 0}
    classifying = functools.partial(
        diffusion_phase, "classify", weight_decay=0.0, **common,
        **training_of(options, steps=classifier_steps, ema=None),
    )  # fmt: skip
    return labelled(
        ClassifierGuided, channels, layout, 2 * channels, 0.0, common, options,
        classifier=NoisyClassifier(channels, options["size"], 2, looks), classifying=classifying,
        scale=scale,
    )  # fmt: skip


def opened(x: Tensor, side: int = 5) -> Tensor:
    """Grey erosion, opening and closing of (B, 1, H, W) with a square."""

    def grow(y: Tensor) -> Tensor:
        return F.max_pool2d(y, side, 1, side // 2)

    def shrink(y: Tensor) -> Tensor:
        return -grow(-y)

    return shrink(grow(grow(shrink(shrink(x)))))


class Fused(LabelledDiffusion):
    """Samples anew where a classifier's counterfactuals differ, decodes elsewhere.

    Args:
        autoencoder: of the images, with ``encoder`` and ``decoder``.
        classifier: image to two logits.
        stages: the phases of these two.
        moves: steps of a counterfactual.
        modality: channel that the map is of.
    """

    needs_grad = True

    def __init__(
        self, *parts: Any, autoencoder: ShallowAutoencoder, classifier: nn.Module,
        stages: Callable[[nn.Module, nn.Module], list[Phase]], moves: int, modality: int,
    ) -> None:  # fmt: skip
        super().__init__(*parts)
        self.autoencoder, self.classifier, self._stages = autoencoder, classifier, stages
        self.moves, self.modality = moves, modality

    def phases(self) -> list[Phase]:
        return [*self._stages(self.autoencoder, self.classifier), *super().phases()]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == "diffuse":
            return super().loss(batch, phase, player)
        x, _ = pad_to_multiple(batch.image, max(4, self.process.multiple))
        if phase == "autoencode":
            return {"l2": F.mse_loss(self.autoencoder(x), x)}
        assert batch.label is not None
        return {"class": F.cross_entropy(self.classifier(x), batch.label.long().to(x.device))}

    def counterfactual(self, code: Tensor, target: int) -> Tensor:
        """A code near this one whose image the classifier takes for the target, like it."""
        moved = code
        for _ in range(self.moves):
            with torch.enable_grad():
                moved = moved.detach().requires_grad_()
                logits = self.classifier(self.autoencoder.decoder(moved))
                wanted = torch.full((len(code),), target, device=code.device)
                # Means of each image by itself, so that the batch doesn't matter.
                away = (moved - code).abs().flatten(1).mean(1).sum()
                cost = F.cross_entropy(logits, wanted, reduction="sum") + 100 * away
                moved = moved - 0.001 * torch.autograd.grad(cost, moved)[0]
        return moved.detach()

    def saliency(self, x: Tensor) -> Tensor:
        """What counterfactuals of both classes change, from 0 to 1, (B, C, H, W)."""
        with torch.no_grad():
            code = self.autoencoder.encoder(x)
            plain = self.autoencoder.decoder(code)
        total = torch.zeros_like(x)
        for target in (1, 0):
            moved = self.counterfactual(code, target)
            with torch.no_grad():
                change = (plain - self.autoencoder.decoder(moved)).abs()
            total += change / change.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        return total / total.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)

    def mask(self, saliency: Tensor) -> Tensor:
        """Where an image is sampled anew: the highest tenth and two pixels around, like it."""
        high = torch.quantile(saliency.flatten(1), 0.9, dim=1).reshape(-1, 1, 1, 1)
        return F.max_pool2d((saliency > high).to(saliency), 5, 1, 2)

    def maps(self, batch: Batch) -> Maps:
        x, cut = pad_to_multiple(batch.image, max(4, self.process.multiple))
        mask = self.mask(self.saliency(x))
        with torch.no_grad():
            s = self.ladder(x)
            sampling = self.walker(x, batch, s)
            decoding = Walker(s, sampling.predict)
            decoded = self.encoded(x, decoding)
            fused = decoded
            for passed in steps_of("step down", len(s) - 2):
                step = len(s) - 3 - passed
                fused, _ = sampling.step(fused, step)
                decoded, _ = decoding.step(decoded, step)
                fused = fused * mask + decoded * (1 - mask)
            apart = (fused - decoded)[:, self.modality, None][cut].abs()
            scaled = apart / apart.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
            shown = opened((255 * scaled).floor() / 255)
        score = apart.mean((1, 2, 3))
        return Maps(shown, score, reconstruction=fused[cut])


@register(
    "dif_fuse",
    paper="Fontanella 2024",
    regime="image-labels",
    preprocess={"scaling": "minmax", "limit": 1.0},
    presets={
        "laptop": {
            "size": 64, "width": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (16,),
            "classifier": "resnet18", "stem": 32, "timesteps": 100, "level": 50, "steps": 500,
            "autoencoder_steps": 300, "classifier_steps": 300, "lr": 1e-3, "batch_size": 8,
        },
    },
    tiny={
        "size": 32, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (16,),
        "classifier": "test_resnet", "stem": 8, "timesteps": 20, "level": 6, "moves": 2,
        "autoencoder_steps": 20, "classifier_steps": 20, "steps": 40, "lr": 4e-3, "batch_size": 4,
    },
    options=encoding(steps=54_000),
)  # fmt: skip
def dif_fuse(
    dims: int = 2,
    channels: int = 1,
    classifier: str = "resnet50",
    stem: int = 128,
    autoencoder_steps: int = 50_000,
    classifier_steps: int = 50_000,
    moves: int = 20,
    modality: int = 0,
    **options: Unpack[Encoding],
) -> Method:
    """Diffusion fused by saliency: sampled anew where a classifier looks, decoded elsewhere (Dif-fuse).

    Fontanella et al., IEEE TMI 2024: in the code of an autoencoder of healthy slices 20 steps of
    gradient descent make an image more and less anomalous to a classifier; what both change is the
    saliency (ACAT). A diffusion model of healthy slices encodes the image by DDIM to step 500 of
    1000. Two ways lead back: ancestral sampling and DDIM; after each step the first one keeps its own
    where saliency is in its highest tenth or two pixels around, and takes the second one's elsewhere.
    The map is the difference of both images in one modality over its maximum, in 8 bits, eroded,
    opened and closed by 5 pixels. The distance in the code is the mean, weighed 100, and the code a
    quarter of the grid in 16 channels, as in the release.

    Departures:
        classes: as many images of each in a batch; the release weighs the loss by their numbers.
        lengths: of the autoencoder and the classifier ours; the release reads epochs from its
            command line.
        counterfactual: each image moves by its own loss; the release takes the mean of a batch, so
            that its steps shrink with the batch.
        range: each scan from its minimum to its maximum; volumes, 8 bits and then slices over their
            maximum in the release.
        score: the mean difference before it is scaled, which the release doesn't have.

    Args:
        dims: spatial axes, 2.
        classifier: timm name of a network that learns from nothing.
        stem: channels of the autoencoder's first convolution.
        autoencoder_steps: updates of the autoencoder, by Adam with 3e-4.
        classifier_steps: updates of the classifier, by Adam with 1e-4.
        moves: steps of a counterfactual.
        modality: channel that the map is of; FLAIR in the release.
        lr: learning rate of AdamW with a weight decay of 0.05.
    """
    batch_size = options["batch_size"]

    def stages(autoencoder: nn.Module, labeller: nn.Module) -> list[Phase]:
        first = diffusion_phase(
            "autoencode", autoencoder, autoencoder_steps, batch_size, 3e-4, None
        )
        second = diffusion_phase(
            "classify", labeller, classifier_steps, batch_size, 1e-4, None,
            part="healthy+labelled", balanced=True, validate_every=0,
        )  # fmt: skip
        return [first, second]

    labeller = import_timm().create_model(
        classifier, pretrained=False, in_chans=channels, num_classes=2
    )
    return labelled(
        Fused, channels, layout_of(options), channels, 0.05, {}, options,
        autoencoder=ShallowAutoencoder(channels, stem), classifier=labeller, stages=stages,
        moves=moves, modality=modality,
    )  # fmt: skip
