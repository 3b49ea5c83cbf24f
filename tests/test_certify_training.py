"""Training under noise: what losses see, and that a program alone makes a frozen source hold out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adversarial import Ball
from certify import CertifyError, Smoothing
from certify.training import Denoised, gaussian, reconstruction, stability
from reprogram import LinearMap, Reprogrammed, adam, fit, load
from reprogram.programs import Additive
from reprogram.sources.images import ImageCodec


class Seen(nn.Module):
    """Remembers its inputs."""

    def forward(self, x):
        self.x = x
        return (x if torch.is_tensor(x) else x["image"]).flatten(1)[:, :3]


def test_noise_has_its_size_and_every_copy_its_own():
    model, x, y = Seen(), torch.zeros(500, 40), torch.arange(500) % 3
    torch.manual_seed(0)
    loss = gaussian(0.5, copies=2)(model, x, y)
    assert model.x.shape == (1000, 40) and float(model.x.std()) == pytest.approx(0.5, rel=0.02)
    assert not torch.equal(model.x[0], model.x[1])
    assert float(loss) == pytest.approx(float(F.cross_entropy(model.x[:, :3], y.repeat_interleave(2))))
    batch = {"image": x, "ids": torch.arange(500), "names": "kept"}
    gaussian(0.5, copies=2)(model, batch, y)
    assert model.x["image"].std() > 0.4 and torch.equal(model.x["ids"], torch.arange(500).repeat_interleave(2))
    assert model.x["names"] == "kept" and float(x.abs().sum()) == 0
    own = gaussian(0.5, loss=lambda model, x, y: model(x).sum() * 0 + 7)
    assert float(own(model, x, y)) == 7


def test_a_denoiser_learns_in_front_of_a_classifier_that_does_not():
    torch.manual_seed(0)
    direction = F.normalize(torch.randn(20), dim=0)
    y = torch.arange(256) % 2
    x = (2.0 * y[:, None] - 1) * direction
    classifier = nn.Sequential(nn.Linear(20, 2)).eval()
    with torch.no_grad():  # right on clean inputs, ruled by a direction without meaning on noisy ones
        other = F.normalize(torch.randn(20), dim=0)
        other = 5 * (other - (other @ direction) * direction)
        classifier[0].weight.copy_(torch.stack([-direction - other, direction + other]))
        classifier[0].bias.zero_()
    before = classifier[0].weight.clone()
    found = {}
    for name, objective in (("mse", reconstruction(0.5)), ("stab", stability(0.5))):
        denoiser = nn.Linear(20, 20)
        model = Denoised(denoiser, classifier)
        optimizer = torch.optim.Adam(denoiser.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            objective(denoiser if name == "mse" else model, x, y).backward()
            optimizer.step()
        found[name] = Smoothing(Ball("l2", 0.5, None, None), sigma=0.5, n=500)(
            model.eval(), x[:6], y[:6], progress=False
        )
    plain = Smoothing(Ball("l2", 0.5, None, None), sigma=0.5, n=500)(classifier, x[:6], y[:6], progress=False)
    assert plain.certified_accuracy == 0
    assert found["mse"].certified_accuracy == found["stab"].certified_accuracy == 1
    assert torch.equal(classifier[0].weight, before)


class Grey(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
        )

    def forward(self, pixels):
        return self.net(pixels.mean(1, keepdim=True))


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.kron(data.images / 16, np.ones((2, 2))).astype("float32")
    return images, data.target


@pytest.mark.slow
def test_smoothing_by_reprogramming():
    """A network of the digits 0 to 4, frozen, reprogrammed for 5 to 9: trained on noise, the program alone certifies more."""
    images, y = digits()
    torch.manual_seed(0)
    network, first = Grey(), torch.from_numpy(images[y < 5])[:, None].expand(-1, 3, -1, -1)
    optimizer, labels = torch.optim.Adam(network.parameters(), 2e-3), torch.from_numpy(y[y < 5])
    for _ in range(8):
        for rows in torch.randperm(len(first)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(first[rows]), labels[rows]).backward()
            optimizer.step()
    x, target = images[y >= 5], y[y >= 5] - 5
    found = {}
    for name, options in (("clean", {}), ("noise", {"loss": gaussian(0.5)})):
        source = load(
            network, codec=ImageCodec((16, 16)), takes="image", width=5, returns="logits", name="digits",
            labels=list("01234"),
        )  # fmt: skip
        before = {key: value.clone() for key, value in source.state_dict().items()}
        model = Reprogrammed(Additive(region="full"), source, LinearMap(5, 5, kind="classification"))
        rates, train = adam(program=0.02, mapping=0.02), (list(x[:600]), target[:600].tolist())
        fit(model, {"train": train}, epochs=25, batch_size=64, optimizer=rates, progress=False, **options)
        assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
        view = model.continuous(list(x[600:]))
        view.module.eval()
        certifier = Smoothing(Ball("l2", 0.5, None, None), sigma=0.5, n=1000)
        found[name] = certifier(view.module, view.inputs, torch.from_numpy(target[600:]), progress=False)
    gain = (found["noise"].radius - found["clean"].radius).double()  # its mean: the area between the two curves
    assert float(gain.mean()) > 3 * float(gain.std()) / len(gain) ** 0.5
    assert found["noise"].certified_accuracy > found["clean"].certified_accuracy


def test_what_has_no_noise_is_said():
    with pytest.raises(CertifyError, match="sigma above 0, got 0"):
        gaussian(0)
    with pytest.raises(CertifyError, match="at least one noisy copy"):
        gaussian(0.1, copies=0)
    for x in ("CCO", {"input_ids": torch.arange(3)}):
        with pytest.raises(CertifyError, match="smooth their embeddings"):
            gaussian(0.1)(Seen(), x, torch.tensor([0]))
