"""Votes over random versions of an input: ablations of places, writings of a text."""

from __future__ import annotations

import math
from itertools import combinations, permutations, product
from random import Random

import pytest
import torch
from scipy.stats import binom
from torch import nn

from adversarial.attacks.discrete import Beam
from adversarial.attacks.tokens import TokenScore
from adversarial.goals import Untargeted
from adversarial.threat import Ball
from certify import CertifyError
from certify.randomised.ablation import Ablation, Filled, doubled, reach
from certify.randomised.rewriting import RewriteSmoothing, Writings, farther_than
from certify.randomised.substitution import SAFER, Enumeration, Synonyms
from certify.randomised.votes import chosen, enough, lower_share, median_ranks, tally, upper_share

# ---- counts


@pytest.mark.parametrize("n", (1, 10, 200))
def test_bounds_of_a_share_hold_as_often_as_they_say(n):
    alpha, count = 0.05, torch.arange(n + 1)
    low, high = lower_share(count, n, alpha), upper_share(count, n, alpha)
    assert low[0] == 0 and high[-1] == 1 and torch.allclose(low, 1 - high.flip(0))
    for p in torch.linspace(0.01, 0.99, 33).tolist():
        weight = torch.from_numpy(binom.pmf(count.numpy(), n, p))
        assert weight[low > p].sum() <= alpha + 1e-9 and weight[high < p].sum() <= alpha + 1e-9
    for k in (0, 1, n // 2, n):  # the tail at the bound is alpha itself
        if k:
            assert binom.sf(k - 1, n, float(low[k])) == pytest.approx(alpha)


@pytest.mark.parametrize(("n", "alpha"), [(6, 0.05), (100, 0.05), (201, 0.001)])
def test_the_median_lies_between_its_ranks(n, alpha):
    first, last = median_ranks(n, alpha)
    assert first == n - 1 - last and 2 * binom.cdf(first, n, 0.5) <= alpha < 2 * binom.cdf(first + 1, n, 0.5)
    with pytest.raises(CertifyError, match=f"take {enough(alpha)} or more"):
        median_ranks(enough(alpha) - 1, alpha)
    assert median_ranks(enough(alpha), alpha) == (0, enough(alpha) - 1)


def test_votes_that_are_no_numbers_are_for_none():
    logits = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [math.inf, 0.0], [2.0, 1.0]])
    assert chosen(logits).tolist() == [1, -1, -1, 0]
    assert tally(chosen(logits)[None], 2).tolist() == [[1, 1]]


# ---- ablation


class Shown(nn.Module):
    """The class of the larger sum of what is seen of doubled places (B, 2D): above or below the middle."""

    def forward(self, x):
        seen, against = x.flatten(1).chunk(2, 1)
        gap = (seen - against).sum(1)
        return torch.stack([gap, -gap, torch.zeros_like(gap) - 1e-6], 1)


def smoothed(model, x, keep):
    """Exact shares of the classes over all ablations of one table row."""
    places = len(x)
    kept = torch.zeros(math.comb(places, keep), places, dtype=torch.bool)
    for row, some in enumerate(combinations(range(places), keep)):
        kept[row, list(some)] = True
    votes = model(doubled(x.expand(len(kept), -1), kept)).argmax(1)
    return torch.bincount(votes, minlength=3) / len(kept)


@pytest.mark.parametrize(("places", "keep"), [(5, 1), (5, 2), (6, 3)])
def test_no_change_within_the_exact_radius_changes_the_smoothed_class(places, keep):
    model, generator = Shown(), torch.Generator().manual_seed(places)
    broken = 0
    for _ in range(4):
        x = torch.rand(places, generator=generator).round(decimals=1)
        share = smoothed(model, x, keep)
        p, top = share.max(0)
        if p <= 0.5:
            continue
        radius = reach(float(2 * p - 1) - 1e-6, places, keep)
        for changed in range(1, min(places, radius + 1, 3) + 1):
            for where in combinations(range(places), changed):
                for values in product((0.0, 1.0), repeat=changed):
                    other = x.clone()
                    other[list(where)] = torch.tensor(values)
                    same = smoothed(model, other, keep).argmax() == top
                    assert same or changed > radius
                    broken += int(not same)
    assert broken  # the radius is not idle


@pytest.mark.parametrize("keep", (1, 3, 45))
def test_the_radius_is_the_papers_formula(keep):
    for p in (0.5001, 0.6, 0.75, 0.9, 0.99, 1.0):
        passing = [r for r in range(785) if 1.5 - p < math.comb(784 - r, keep) / math.comb(784, keep) - 1e-12]
        assert reach(2 * p - 1, 784, keep) in (max(passing, default=0), max(passing, default=0) + 1)
    assert [reach(gap, 20, 5) for gap in (1e-9, 0.4, 0.9, 1.0)] == sorted(
        reach(g, 20, 5) for g in (1e-9, 0.4, 0.9, 1.0)
    )
    assert reach(1.0, 10, 1) == 4  # p = 1: 1 - r / 10 must stay above one half


def rows():
    return torch.tensor([[0.9] * 8, [0.1] * 8, [0.8] * 7 + [0.0], [0.9, 0.1] * 4]), torch.tensor([0, 1, 0, 0])


@pytest.mark.parametrize("bounds", ("top", "both"))
def test_certificates_agree_with_exact_shares(bounds):
    x, y = rows()
    ball, model = Ball("l0", 2), Shown().eval()
    found = Ablation(ball, 3, 100, 2000, 0.01, bounds)(model, x, y, batch_size=4096)
    for row in range(4):
        share = smoothed(model, x[row], 3)
        exact = reach(float(2 * share.max() - 1) - 1e-9, 8, 3) if share.max() > 0.5 + 1e-6 else 0
        assert 0 <= found.radius[row] <= exact
        assert found.prediction[row] in (-1, int(share.argmax()))
    assert found.prediction[3] == -1 and not found.certified[3]
    assert found.radius[:2].tolist() == [1, 1] and found.confidence == 0.99 and found.guarantee == "probabilistic"
    assert torch.equal(found.certified, (found.prediction == y) & (found.radius >= 2))
    again = Ablation(ball, 3, 100, 2000, 0.01, bounds)(model, x[1:2], y[1:2], batch_size=7)
    assert again.radius[0] == found.radius[1]  # alone, and in other batches
    small = Ablation(Ball("l0", torch.tensor([1.0, 2.0, 1.0, 1.0])), 3, 100, 2000, 0.01, bounds)(model, x, y)
    assert small.certified[:2].tolist() == [True, False]


class Spread(nn.Module):
    """Class 0 where place 0 to 4 of 10 is kept, else any of nine others: five places of ten vote for class 0."""

    def forward(self, x):
        kept = (x[:, :10] + x[:, 10:]).argmax(1)
        return nn.functional.one_hot(torch.where(kept < 5, 0, kept), 10).float()


def test_a_wrong_prediction_has_no_radius():
    """Curves count radii: one of a wrong class would be counted as certified."""
    x, y = rows()
    found = Ablation(Ball("l0", 1), 3, 100, 2000)(Shown().eval(), x, 1 - y)
    assert found.prediction[:2].tolist() == [0, 1] and not found.radius.any() and not found.certified.any()
    assert found.accuracy_at(1.0).accuracy == 0


def test_ablations_are_of_what_the_threat_lies_around():
    """An input may be a little outside the bounds; the changed ones are around where the bounds moved it."""

    class Steep(nn.Module):
        def forward(self, x):
            return torch.stack([0 * x[:, 0], (x[:, :8] - 1).sum(1) * 1e6 - 1e-3], 1)  # class 1 above the bounds alone

    found = Ablation(Ball("l0", 1), 3, 20, 200)(Steep().eval(), torch.full((1, 8), 1 + 5e-6), torch.tensor([0]))
    assert found.prediction.tolist() == [0] and found.radius.tolist() == [1.0]


def test_bounds_of_all_classes_reach_farther_where_votes_are_spread():
    x, y = torch.rand(1, 10), torch.tensor([0])
    top, both = (
        Ablation(Ball("l0", 1), 1, 100, 5000, 0.05, bounds)(Spread().eval(), x, y) for bounds in ("top", "both")
    )
    assert top.prediction.item() == -1
    assert both.prediction.item() == 0 and both.radius.item() == 1 and both.certified.item()  # 0.5 - 0.1 > 2 · 0.1


def test_images_lose_whole_positions_and_each_as_often():
    x = torch.rand(2, 3, 4, 5) * 0.5 + 0.25
    ablation = Ablation(Ball("l0", 1), 6)
    seen = torch.stack([ablation.ablated(x, seed) for seed in range(400)])
    assert seen.shape == (400, 2, 6, 4, 5) and torch.equal(ablation.ablated(x, 3), seen[3])
    kept = (seen != 0).view(400, 2, 2, 3, 4, 5)
    assert (kept == kept[:, :, :1, :1]).all() and (kept[:, :, 0, 0].sum((2, 3)) == 6).all()
    often = kept[:, :, 0, 0].float().mean(0)
    assert ((often - 0.3).abs() < 5 * math.sqrt(0.21 / 400)).all()
    where = kept[3, 0, 0, 0]
    assert torch.equal(seen[3, 0, :3, where], x[0, :, where]) and torch.equal(seen[3, 0, 3:, where], 1 - x[0, :, where])
    grey = Ablation(Ball("l0", 1), 6, encode=Filled(0.5)).ablated(x, 0)
    assert grey.shape == x.shape and ((grey == 0.5) | (grey == x)).all()


def test_bad_input_of_ablation():
    x, y = rows()
    ball = Ball("l0", 1)
    for make, says in (
        (lambda: Ablation(Ball("linf", 0.1), 3), "an l0 ball, got linf"),
        (lambda: Ablation(Synonyms({}), 3), "an l0 ball, got Synonyms"),
        (lambda: Ablation(ball, 0), "at least one place to keep"),
        (lambda: Ablation(ball, 3, alpha=1.5), "alpha between 0 and 1"),
        (lambda: Ablation(ball, 3, n=0), "at least one draw"),
        (lambda: Ablation(ball, 3, bounds="all"), '"top" or "both"'),
        (lambda: Ablation(ball, 3, n=4)(Shown().eval(), x, y), "take 5 or more"),
        (lambda: Ablation(ball, 8)(Shown().eval(), x, y), "fewer places to keep than the 8"),
        (lambda: Ablation(ball, 3)(Shown().train(), x, y), "evaluation mode"),
        (lambda: Ablation(ball, 3)(Shown().eval(), x, y + 9), "labels from 0 to 2"),
    ):
        with pytest.raises(CertifyError, match=says):
            make()


# ---- substitutions


class Reader(nn.Module):
    """Logits that are linear in the tokens of every place, (B, 4) ids below 7."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(4, 7, 2, generator=generator))

    def forward(self, ids):
        return sum(self.table[place, ids[:, place]] for place in range(4))


WORDS = {1: (2, 3), 2: (1, 3), 3: (1, 2, 4), 4: (3,)}
TEXTS = torch.tensor([[1, 2, 3, 4], [0, 1, 0, 2], [5, 6, 0, 5], [4, 4, 3, 3]])


@pytest.mark.parametrize("most", (None, 1, 2))
def test_enumeration_reads_every_text_of_the_set(most):
    model, synonyms = Reader().eval(), Synonyms(WORDS, most)
    y = model(TEXTS).argmax(1)
    found = Enumeration(synonyms)(model, TEXTS, y, batch_size=5)
    for row, text in enumerate(TEXTS.tolist()):
        choices = [(token, *WORDS.get(token, ())) for token in text]
        changes = [(sum(a != b for a, b in zip(other, text, strict=True)), other) for other in product(*choices)]
        allowed = [(n, other) for n, other in changes if most is None or n <= most]
        out = model(torch.tensor([other for _, other in allowed]))
        margins = (out[:, y[row]] - out[:, 1 - y[row]]).detach()
        assert synonyms.size(tuple(text)) == len(allowed)
        assert found.margin[row].item() == pytest.approx(float(margins.min()), abs=1e-6)
        assert found.certified[row] == (margins.min() > 0)
        bad = [n for (n, _), margin in zip(allowed, margins, strict=True) if margin <= 0]
        assert found.radius[row] == (min(bad) - 1 if bad else synonyms.changes(tuple(text)))
    space = [synonyms.space(tuple(text)) for text in TEXTS.tolist()]
    table = torch.eye(7)
    embedded = nn.Sequential(nn.Flatten(), nn.Linear(28, 2, bias=False))
    embedded[1].weight.data = model.table.data.flatten(0, 1).T
    attacked = Beam(50, 4)(TokenScore(embedded, table, Untargeted(y)), [one.start for one in space], space)
    assert [not one.success for one in attacked] == found.certified.tolist()


@pytest.mark.parametrize(
    "neighbours", (None, dict.fromkeys(range(1, 5), (1, 2, 3, 4)), {w: (0, *WORDS[w], 5) for w in WORDS})
)
def test_no_substitution_within_the_exact_radius_changes_the_vote(neighbours):
    model, synonyms = Reader().eval(), Synonyms(WORDS)
    safer = SAFER(synonyms, neighbours, 50, 2000, 0.01)

    def vote(text):
        drawn = torch.tensor(list(product(*(sorted(safer.near(token)) for token in text))))
        return torch.bincount(model(drawn).argmax(1), minlength=2) / len(drawn)

    named = safer(model, TEXTS, model(TEXTS).argmax(1), batch_size=512).prediction
    found = safer(model, TEXTS, named.clamp_min(0), batch_size=512)  # a class that is not the label's has no radius
    assert torch.equal(found.prediction, named)
    for row, text in enumerate(map(tuple, TEXTS.tolist())):
        p, top = vote(text).max(0)
        exact = safer.radius(text, float(2 * p - 1) - 1e-6)
        assert found.prediction[row] in (-1, int(top)) and found.radius[row] <= max(exact, 0)
        for changes in range(1, exact + 1):
            assert all(vote(other).argmax() == top for other in synonyms.texts(text, changes))
    if neighbours is not None and 0 not in neighbours[1]:  # equals stand in one class: nothing can move
        sure = found.prediction >= 0
        assert torch.equal(found.radius[sure], torch.tensor([4.0, 2.0, 0.0, 4.0]).double()[sure]) and sure.any()
    assert torch.equal(safer(model, TEXTS[2:], found.prediction[2:].clamp_min(0)).radius, found.radius[2:])


def test_overlaps_and_bad_input_of_substitutions():
    model, y = Reader().eval(), torch.zeros(4, dtype=torch.long)
    safer = SAFER(Synonyms(WORDS))
    assert [safer.overlap(token) for token in range(6)] == [1.0, 0.75, 0.75, 0.5, 0.5, 1.0]
    assert (
        safer.radius((1, 2, 0, 0), 0.6) == 1 and safer.radius((0, 0, 0, 0), 0.6) == 0 and safer.radius((0,), -0.1) == -1
    )
    for make, says in (
        (lambda: Enumeration(Synonyms(WORDS), 5)(model, TEXTS, y), "at most 5 texts for a row, got 72 for row 0"),
        (lambda: Enumeration(Synonyms(WORDS))(model, TEXTS.float(), y), r"token ids \(B, L\) from 0"),
        (lambda: SAFER(Synonyms(WORDS))(model, TEXTS - 1, y), "token ids"),
        (lambda: SAFER(Synonyms(WORDS))(model, TEXTS[:, :0], y), "token ids"),
        (lambda: SAFER(Synonyms(WORDS), n=3), "show a majority"),
        (lambda: SAFER(Synonyms(WORDS), bounds="most"), '"top" or "both"'),
        (lambda: SAFER(Synonyms(WORDS), n=20)(model, TEXTS, y + 2), "labels from 0 to 1"),
        (lambda: SAFER(Synonyms(WORDS), n=20)(Reader().train(), TEXTS, y), "evaluation mode"),
    ):
        with pytest.raises(CertifyError, match=says):
            make()


# ---- writings: texts whose letters may stand in any order mean the same

LETTERS = Writings(lambda text: "".join(sorted(text)), lambda name, seed: "".join(Random(seed).sample(name, len(name))))


def first_letter(texts):
    """Class 1 where the first letter is b: a reader that hangs on the order."""
    return torch.tensor([[float(text[0] != "b"), float(text[0] == "b")] for text in texts])


def place_of_b(texts):
    return torch.tensor([[float(text.index("b"))] for text in texts])


def test_every_writing_gets_the_same_answer():
    smoothing = RewriteSmoothing(LETTERS, n0=10, n=60, alpha=0.01)
    texts = ["".join(order) for order in permutations("aab")]
    y = torch.zeros(len(texts), dtype=torch.long)
    found = smoothing(first_letter, texts, y)
    assert set(found.prediction.tolist()) == {0} and found.certified.all() and (found.radius == 1).all()
    assert found.guarantee == "probabilistic" and found.confidence == 0.99
    middle = smoothing.median(place_of_b, texts)
    assert (
        (middle.median == middle.median[0]).all() and (middle.low <= middle.median).all() and (middle.width >= 0).all()
    )
    assert smoothing(first_letter, ["ab"], y[:1]).prediction.item() == -1  # a tie by construction
    assert (
        smoothing(first_letter, ["b"], y[:1]).prediction.item() == 1
        and not smoothing(first_letter, ["b"], y[:1]).certified
    )


def test_statements_are_wrong_no_more_often_than_they_say():
    """Shares and medians that are known: of 'abbb…' orders a share of 3/4 begins with b, and the place of b is uniform."""
    seeds = range(60)
    wrong_share = wrong_median = wrong_class = 0
    for seed in seeds:
        smoothing = RewriteSmoothing(LETTERS, n0=5, n=30, alpha=0.1, seed=seed)
        changed = smoothing.changed(first_letter, ["abbb"])
        wrong_share += not changed.low.item() <= 0.75 <= changed.high.item()
        wrong_class += smoothing(first_letter, ["abbb"], torch.tensor([0])).certified.item()
        middle = smoothing.median(place_of_b, ["aabaa"])
        wrong_median += not middle.low.item() <= 2 <= middle.high.item()
    limit = binom.ppf(0.999, len(seeds), 0.1)
    assert wrong_share <= limit and wrong_median <= limit and wrong_class <= limit


def test_changes_of_a_reader_and_texts_it_cannot_read():
    smoothing = RewriteSmoothing(LETTERS, n=40, alpha=0.05)
    sorted_reader = smoothing.changed(lambda texts: first_letter(["".join(sorted(t)) for t in texts]), ["ab", "ba"])
    assert (sorted_reader.share == 0).all() and (sorted_reader.high > 0).all() and sorted_reader.n == 40
    moved = smoothing.changed(place_of_b, ["baaaaaaaaa"], farther_than(4.5))
    assert moved.low.item() < 0.5 < moved.high.item()

    def partial(texts):
        found = place_of_b(texts)
        return found.masked_fill(torch.tensor([[t[0] == "b"] for t in texts]), torch.nan)

    middle = smoothing.median(partial, ["ab"])  # half of the writings cannot be read
    assert middle.low.item() == -math.inf and middle.high.item() == math.inf and middle.median.item() == 1
    assert smoothing.changed(partial, ["ab"], farther_than(9.0)).share.item() > 0.2


def test_bad_input_of_rewriting():
    y = torch.tensor([0])
    for make, says in (
        (lambda: RewriteSmoothing(LETTERS, n=4, alpha=0.001)(first_letter, ["ab"], y), "take 10 or more"),
        (lambda: RewriteSmoothing(LETTERS, n=4)(first_letter, ["ab"], y), "show a majority"),
        (lambda: RewriteSmoothing(LETTERS, n=0), "at least one draw"),
        (lambda: RewriteSmoothing(LETTERS)(first_letter, [], y[:0]), "at least one text"),
        (lambda: RewriteSmoothing(LETTERS)(first_letter, ["ab"], y + 5), "labels from 0 to 1"),
        (lambda: RewriteSmoothing(LETTERS)(first_letter, ["ab", "b"], y), "a label for each of 2 texts"),
        (lambda: RewriteSmoothing(LETTERS)(first_letter, ["ab"], y.double()), "a whole number, got .*float64"),
        (lambda: RewriteSmoothing(LETTERS)(first_letter, ["ab"], [0]), "a whole number, got a list"),
        (lambda: RewriteSmoothing(LETTERS)(first_letter, "ab", torch.tensor([0, 0])), "text in a list, got 'ab'"),
        (lambda: RewriteSmoothing(LETTERS)(lambda texts: [0.0], ["ab"], y), "outputs as a tensor, got a list"),
        (lambda: RewriteSmoothing(LETTERS, n=5, alpha=0.05).median(place_of_b, ["ab"]), "enough draws for a median"),
        (lambda: RewriteSmoothing(LETTERS)(lambda texts: torch.zeros(1), ["ab"], y), r"outputs \(\d+, T\)"),
    ):
        with pytest.raises(CertifyError, match=says):
            make()


def test_molecules_read_as_smiles(tiny_source):
    pytest.importorskip("rdkit")
    from reprogram import adapt
    from tasks.molecules.standardise import standardise
    from tasks.molecules.writings import Readings, writings

    smiles = ["CCO", "c1ccccc1O", "CC(=O)N", "CCCCl", "OC1CC1", "CN"]
    model, _ = adapt(
        tiny_source, smiles, [1.0, 2.0, 0.5, 3.0, 2.5, 0.0], program="none", mapping="ridge", progress=False
    )
    smoothing = RewriteSmoothing(writings(), n=30, alpha=0.05)
    drawn = smoothing.threat.draws("c1ccccc1O", 12, 0)
    assert {standardise(text) for text in drawn} == {standardise("c1ccccc1O")} and len(set(drawn)) > 4
    assert drawn == smoothing.threat.draws("Oc1ccccc1", 12, 0)
    given, other = (smoothing.median(Readings(model), texts) for texts in (["CCO", "c1ccccc1O"], ["OCC", "Oc1ccccc1"]))
    assert torch.equal(given.median, other.median) and torch.equal(given.low, other.low)
    assert smoothing.threat.contains("OCC", "CCO") and not smoothing.threat.contains("OC", "CCO")
    assert Readings(model)(["C" * 500, "CC"]).isnan().tolist() == [[True], [False]]
