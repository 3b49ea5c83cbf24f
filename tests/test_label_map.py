"""Label maps: the published formulas, against plain loops, from two classes up, with absent classes and few rows."""

import itertools

import pytest
import torch

from reprogram.errors import DataError
from reprogram.label_map import METHODS, LabelMap
from reprogram.train import fit

FILLED = [method for method in METHODS if method != "text"]


def rows(count=40, width=12, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * 2, torch.arange(count) % classes


@pytest.mark.parametrize("method", FILLED)
@pytest.mark.parametrize("classes", [2, 3, 6, 7, 12])
@pytest.mark.parametrize("present", ["all", "one absent", "one row each"])
def test_every_map_is_finite_and_sums_to_one(method, classes, present):
    logits, y = rows(classes=classes, count=classes if present == "one row each" else 5 * classes)
    if present == "one absent":
        logits, y = logits[y != classes - 1], y[y != classes - 1]
    found = LabelMap(12, classes, method=method)
    found.prepare(logits, y)
    found.refit(logits, y)
    assert found.weight.shape == (classes, 12)
    assert (found.weight >= 0).all()
    torch.testing.assert_close(found.weight.sum(1), torch.ones(classes))
    assert found(logits).isfinite().all()


@pytest.mark.parametrize("method", ["first", "random", "frequency", "iterative"])
@pytest.mark.parametrize("many", [1, 2, 4])
def test_one_to_many_maps_share_no_source_class(method, many):
    logits, y = rows()
    found = LabelMap(12, 3, method=method, many=many)
    found.prepare(logits, y)
    used = found.weight > 0
    assert used.sum(1).tolist() == [many] * 3
    assert used.sum(0).max() == 1
    torch.testing.assert_close(found.weight[used], torch.full((3 * many,), 1 / many))


def test_frequency_takes_the_most_frequent_pair_first():
    # class 0 is called 2 five times and 1 once, class 1 is called 2 four times and 0 thrice, class 2 never comes
    calls = [(0, 2)] * 5 + [(0, 1)] + [(1, 2)] * 4 + [(1, 0)] * 3
    logits = torch.stack([torch.eye(5)[s] for _, s in calls])
    y = torch.tensor([t for t, _ in calls])
    found = LabelMap(5, 3, method="frequency")
    found.prepare(logits, y)
    assert found.weight.argmax(1).tolist() == [2, 0, 1]  # the absent class takes the first one left over


@pytest.mark.parametrize("seed", range(5))
def test_greedy_against_a_plain_loop(seed):
    logits, y = rows(seed=seed, width=7, classes=4)
    counts = torch.zeros(7, 4)
    for row, label in zip(logits, y, strict=True):
        counts[row.argmax(), label] += 1
    left, expected = dict(itertools.product(range(4), [None])), {}
    table = {(t, s): counts[s, t].item() for t in range(4) for s in range(7)}
    while left:
        best = max(table.values())
        t, s = next(pair for pair in sorted(table) if table[pair] == best)
        expected[t] = s
        left.pop(t)
        table = {pair: n for pair, n in table.items() if pair[0] != t and pair[1] != s}
    found = LabelMap(7, 4, method="iterative")
    found.prepare(logits, y)
    assert found.weight.argmax(1).tolist() == [expected[t] for t in range(4)]


def test_bayesian_maps_against_the_formulas():
    logits, y = rows(count=30, width=8, classes=3, seed=4)
    counts, mass = torch.zeros(8, 3), torch.zeros(8, 3)
    for row, label in zip(logits, y, strict=True):
        counts[row.argmax(), label] += 1
        chance = row.softmax(0)
        for s in chance.topk(2).indices:
            mass[s, label] += chance[s]
    for method, n in (("bayesian", counts), ("bayesian+", mass)):
        share = n / (n.sum(1, keepdim=True) + 1.0)
        found = LabelMap(8, 3, method=method, top=0.7)  # ⌊0.7 · 3⌋ = 2
        found.prepare(logits, y)
        torch.testing.assert_close(found.weight, (share / share.sum(0)).T)


def test_averages_of_logits_and_of_probabilities():
    logits, y = rows()
    plain = LabelMap(12, 3, method="first", many=2)
    chance = LabelMap(12, 3, method="first", many=2, average="probabilities")
    for one in (plain, chance):
        one.prepare(logits, y)
    torch.testing.assert_close(plain(logits)[:, 1], logits[:, 2:4].mean(1))
    torch.testing.assert_close(chance(logits)[:, 1].exp(), logits.softmax(1)[:, 2:4].mean(1))


def test_names_find_their_kin():
    vectors = {
        "cat": [1.0, 0, 0],
        "dog": [0, 1.0, 0],
        "tabby": [0.9, 0.1, 0],
        "hound": [0.1, 0.9, 0],
        "car": [0, 0, 1.0],
    }
    found = LabelMap.by_names(
        ["dog", "cat"], ["car", "tabby", "hound"], lambda names: torch.tensor([vectors[name] for name in names])
    )
    assert found.weight.argmax(1).tolist() == [2, 1]
    before = found.weight.clone()
    found.prepare(*rows(width=3, classes=2))
    torch.testing.assert_close(found.weight, before)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "bayes"}, "label map among"),
        ({"average": "sum"}, "logits or probabilities"),
        ({"many": 5}, "no more than the source's 12"),
    ],
)
def test_wrong_maps_are_one_sentence(options, message):
    with pytest.raises(DataError, match=message):
        LabelMap(12, 3, **options)


@pytest.mark.parametrize("method", ["iterative", "bayesian", "bayesian+"])
def test_refreshed_maps_follow_the_program(pixel_source, pictures, method):
    from reprogram import Reprogrammed
    from reprogram.objectives import adam
    from reprogram.programs import Pad
    from reprogram.train import predict, refresh

    x, y = pictures
    model = Reprogrammed(Pad(image_size=16), pixel_source, LabelMap(8, 3, method=method))
    history = fit(
        model, {"train": (x, y)}, optimizer=adam(program=0.1), epochs=25, hooks=[refresh], progress=False
    )  # fmt: skip
    expected = LabelMap(8, 3, method=method)
    with torch.no_grad():
        expected.prepare(model.features(model.collate(model.encode(x))), torch.tensor(y))
    torch.testing.assert_close(model.mapping.weight, expected.weight)
    assert history.column("train_loss")[-1] < history.column("train_loss")[0]
    assert (predict(model, x).argmax(1) == y).mean() > 0.6
