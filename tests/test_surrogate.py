"""Prime, then reprogram: what one pass over a black box teaches a local stand-in."""

import numpy as np
import pytest
import torch

from reprogram import Reprogrammed
from reprogram.errors import DataError
from reprogram.label_map import LabelMap
from reprogram.mapping import LinearMap
from reprogram.objectives import adam
from reprogram.programs import Pad
from reprogram.sources import BlackBox, Source, load
from reprogram.sources.images import ImageCodec
from reprogram.surrogate import Through, prime, reprime
from reprogram.train import fit, predict, refresh


class Half(torch.nn.Module):
    """The first layer of the tiny classifier: a local encoder that knows what the box knows."""

    def __init__(self, network):
        super().__init__()
        self.first = network.first

    def forward(self, pixels):
        return torch.tanh(self.first(pixels.flatten(1) - 0.5) * 4)


@pytest.fixture
def box(pixel_source):
    answer = BlackBox(
        lambda pixels: pixel_source.network(torch.from_numpy(pixels)).softmax(1).detach().numpy(), budget=48
    )
    return Source(
        answer, pixel_source.codec, name="box", takes="image", width=8, returns="logits", differentiable=False
    )


@pytest.fixture
def local(pixel_source):
    return load(Half(pixel_source.network), codec=ImageCodec((32, 32)), takes="image", width=24, name="half")


def test_each_input_is_asked_once_and_the_answers_are_learned(box, local, pixel_source, pictures):
    x, _ = pictures
    stand_in = prime(box, local, x, epochs=300, rate=1e-2, progress=False)
    assert box.network.queries == len(x)
    batch = local.codec.collate(local.codec.encode(x))
    with torch.no_grad():
        learned, said = stand_in(local(batch)).softmax(1), pixel_source(batch).softmax(1)
    assert (learned - said).abs().mean() < 0.01


def test_the_box_is_reprogrammed_without_a_further_query(box, local, pictures, tmp_path):
    x, y = pictures
    stand_in = prime(box, local, x, epochs=200, rate=1e-2, progress=False)
    model = Reprogrammed(Pad(image_size=16), local, Through(stand_in, LabelMap(8, 3, method="bayesian+")))
    before = stand_in.linear.weight.clone()
    history = fit(model, {"train": (x, y)}, optimizer=adam(program=0.05), epochs=20, hooks=[refresh], progress=False)
    assert history.column("train_loss")[-1] < history.column("train_loss")[0]
    assert torch.equal(before, stand_in.linear.weight)
    assert box.network.queries == len(x)
    model.save_pretrained(tmp_path / "model")
    again = Reprogrammed.from_pretrained(tmp_path / "model", source=local)
    assert np.array_equal(predict(again, x), predict(model, x))


def test_rounds_ask_where_the_program_has_led_and_imitate_better_there(pixel_source, local, pictures):
    x, y = pictures
    wrong = {}
    for rounds in (1, 4):
        answer = BlackBox(lambda pixels: pixel_source.network(torch.from_numpy(pixels)).softmax(1).detach().numpy())
        box = Source(answer, pixel_source.codec, name="box", takes="image", width=8, returns="logits", differentiable=False)  # fmt: skip
        model = Reprogrammed(Pad(image_size=16), local, Through(LinearMap(24, 8), LabelMap(8, 3)))
        reprime(
            box, model, {"train": (x, y)}, rounds=rounds, epochs=24 // rounds, optimizer=adam(program=0.1),
            primed={"epochs": 60, "rate": 1e-2}, progress=False,
        )  # fmt: skip
        assert answer.queries == rounds * len(x)
        batch = model.program(model.collate(model.encode(x)))
        with torch.no_grad():
            learned, said = model.mapping.first(local(batch)).softmax(1), pixel_source(batch).softmax(1)
        wrong[rounds] = float((learned - said).abs().mean())
    assert wrong[4] < wrong[1]


def test_wrong_partners_are_one_sentence(box, local, sound_source, pictures):
    with pytest.raises(DataError, match="gradients pass"):
        prime(box, sound_source, pictures[0], progress=False)
    with pytest.raises(DataError, match="answers with classes"):
        prime(local, local, pictures[0], progress=False)
    with pytest.raises(DataError, match="map is a Through"):
        reprime(box, Reprogrammed(Pad(image_size=16), local, LabelMap(24, 3)), {"train": pictures}, progress=False)
    with pytest.raises(DataError, match="two inputs"):
        prime(box, local, pictures[0][:1], progress=False)
