"""Other SMILES of a molecule, analogues, discrete searches, and what both do to a model."""

from __future__ import annotations

import re
from itertools import product
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("rdkit")
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from adversarial.attacks.discrete import Beam, Genetic, Greedy, HotFlip
from adversarial.attacks.tokens import Substitutions, TokenScore
from adversarial.goals import LargerError, Targeted, Untargeted
from reprogram import Identity, LinearMap, Reprogrammed, adapt, predict
from reprogram.errors import DataError
from reprogram.sources import load
from reprogram.sources.codecs import FeatureCodec
from tasks.molecules.rewriting import drawn
from tasks.molecules.standardise import standardise
from tasks.molecules.threats import (
    KINDS,
    OPTIONAL,
    Analogues,
    MoleculeScore,
    Rewrites,
    analogues,
    rewrite_robustness,
    rewrites,
)

MOLECULES = [
    "CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "F/C=C/F", "c1ccc2c(c1)[nH]c1ccccc12", "CN1CCC[C@H]1c1cccnc1.Cl",
    "C1CC2CC1C2", "CC(C)Cc1ccc(C(C)C(=O)O)cc1", "[2H]C([2H])O", "O=[N+]([O-])c1ccccc1", "C1CC1",
]  # fmt: skip


# ---- rewrites


@pytest.mark.parametrize("smiles", MOLECULES)
def test_every_rewrite_is_the_same_molecule_and_new(smiles):
    found = rewrites(smiles, 30)
    assert len(set(found)) == len(found) and smiles not in found and 3 < len(found) <= 30
    assert {standardise(text) for text in found} == {standardise(smiles)}
    assert found == rewrites(smiles, 30) and found[:5] == rewrites(smiles, 5)


def test_kinds_are_what_they_say():
    for kind in KINDS:
        assert {form for _, form in drawn(MOLECULES[0], 8, (kind,), 0)} == {kind}
    assert all(text == text.upper() and "=" in text for text in rewrites("c1ccncc1", 5, ("kekule",)))
    assert rewrites("CCO", 1, ("hydrogens",)) == ["[H]OC([H])([H])C([H])([H])[H]"]
    assert all(re.fullmatch(r"C(\d|%\d\d)CC\1", text) for text in rewrites("C1CC1", 9, ("rings",)))
    for none, kind in (("CCO", "rings"), ("CCO", "kekule"), ("C", "random"), ("CCO", "salt")):
        assert rewrites(none, 5, (kind,)) == []
    mixed = [form for _, form in drawn(MOLECULES[0], 8, KINDS, 0)]
    assert sorted(mixed) == sorted(2 * KINDS)


def test_seeds_differ_and_the_global_generators_stay():
    import random

    before = random.getstate(), torch.random.get_rng_state()
    assert rewrites(MOLECULES[6], 8, seed=0) != rewrites(MOLECULES[6], 8, seed=1)
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_options_are_other_forms_of_the_compound():
    for text in rewrites("CN1CCC[C@H]1c1cccnc1", 10, ("salt",)):
        assert "." in text
        assert standardise(text, largest_fragment=True, neutralise=True) == standardise("CN1CCC[C@H]1c1cccnc1")
    assert any("[Na+]" in text for text in rewrites(MOLECULES[6], 10, ("salt",)))
    found = rewrites("O=c1cc[nH]cc1", 5, ("tautomer",))
    assert standardise("Oc1ccncc1") in found
    for text in rewrites("C[C@H](N)C(=O)O", 9, ("tautomer",)):
        assert standardise(text) != "CC(N)C(=O)O"  # the stereocentre is not forgotten
    assert set(OPTIONAL).isdisjoint(KINDS)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(MOLECULES))
def test_any_seed_gives_the_same_molecule(seed, smiles):
    name = standardise(smiles)
    assert all(Chem.CanonSmiles(text) == name for text in rewrites(smiles, 8, seed=seed))


def test_bad_input_of_rewrites():
    for call, says in (
        (lambda: rewrites("C(", 3), "parse|close"),
        (lambda: rewrites("CCO", 3, ("mirror",)), "kinds among random"),
        (lambda: rewrites("CCO", -1), "count from 0"),
        (lambda: analogues("CCO.Cl"), "one molecule"),
        (lambda: analogues("CCO", edits=("swap",)), "edits among"),
    ):
        with pytest.raises(DataError, match=says):
            call()


# ---- analogues


@pytest.mark.parametrize("smiles", ["CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "O=[N+]([O-])c1ccccc1", "CS(C)(=O)=O"])
def test_analogues_are_valid_near_and_ranked(smiles):
    found = analogues(smiles)
    assert len(found) > 30 and len({one.smiles for one in found}) == len(found)
    similarities = [one.similarity for one in found]
    assert similarities == sorted(similarities, reverse=True) and max(similarities) <= 1
    atoms = Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()
    for one in found:
        mol = Chem.MolFromSmiles(one.smiles)
        assert standardise(one.smiles) == one.smiles != standardise(smiles) and "." not in one.smiles
        assert not any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
        added = mol.GetNumHeavyAtoms() - atoms
        assert {"element": 0, "bond": 0, "add": 1, "remove": -1}.get(one.edit, added) == added <= 4
    assert found[:3] == analogues(smiles, 3) and all(one.similarity >= 0.6 for one in analogues(smiles, least=0.6))


def test_known_neighbours_are_found():
    near = {one.smiles: one.edit for one in analogues("Cc1ccccc1")}
    expected = {
        "c1ccccc1": "remove", "Cc1ccccn1": "element", "CCc1ccccc1": "add", "Nc1ccccc1": "element", "N#Cc1ccccc1": "fragment",
    }  # fmt: skip
    assert {name: near.get(name) for name in expected} == expected
    crowded = Chem.MolFromSmarts("[#16;v4,v6;!$([#16]=O)]")
    assert not any(Chem.MolFromSmiles(name).HasSubstructMatch(crowded) for name in near)


# ---- discrete searches on a problem whose optimum is known


def tokens(length=6, words=5, seed=0):
    """A model that is linear in embeddings: the best substitution of every place is independent of the others."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(words, 3, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * length, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, 3 * length, generator=generator, dtype=torch.float64))
    starts = [tuple(row) for row in torch.randint(words, (6, length), generator=generator).tolist()]
    y = model(table[torch.tensor(starts)]).argmax(1)
    return model, table, starts, y


def best_of_all(score, start, row, words, most):
    every = [
        c
        for c in product(range(words), repeat=len(start))
        if sum(a != b for a, b in zip(c, start, strict=True)) <= most
    ]
    return float(score(every, [row] * len(every)).max())


SEARCHES = {
    "greedy": Greedy(), "beam": Beam(4), "genetic": Genetic(queries=400), "hotflip": HotFlip(4),
    "sampled": Beam(3, steps=20, sample=8),
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_keep_their_laws(name):
    model, table, starts, y = tokens()
    score = TokenScore(model, table, Untargeted(y))
    asked, gradients = [], []

    def counted(candidates, rows):
        asked.extend(zip(rows, candidates, strict=True))
        return score(candidates, rows)

    def steep(candidates, rows):
        gradients.extend(rows)
        asked.extend(zip(rows, candidates, strict=True))
        return score.swaps(candidates, rows)

    spaces = [Substitutions.over(s, range(5), [True] * 5 + [False], most=3) for s in starts]
    drawn_before = torch.random.get_rng_state()
    found = SEARCHES[name](counted, starts, spaces, swaps=steep, seed=3)
    assert torch.equal(drawn_before, torch.random.get_rng_state())
    assert sum(one.queries for one in found) == len(asked) and sum(one.backwards for one in found) == len(gradients)
    for row, (one, start, space) in enumerate(zip(found, starts, spaces, strict=True)):
        assert one.queries == sum(r == row for r, _ in asked) <= SEARCHES[name].queries
        if name != "hotflip":
            assert len({c for r, c in asked if r == row}) == one.queries  # nothing twice
        assert one.candidate == (one.best if one.success else start)
        assert space.changed(one.best) <= 3 and one.best[5] == start[5]
        assert one.success == bool(score([one.candidate], [row]) > 0)
        alone = SEARCHES[name](
            lambda c, r, row=row: score(c, [row] * len(c)), [start], space,
            swaps=lambda c, r, row=row: score.swaps(c, [row] * len(c)), seed=3,
        )[0]  # fmt: skip
        assert alone.candidate == one.candidate and alone.queries == one.queries
    assert sum(one.success for one in found) >= 5


def test_a_linear_model_is_attacked_at_its_optimum():
    model, table, starts, _ = tokens(5, 4, seed=2)
    goal = LargerError(torch.full((6, 1), -99.0, dtype=torch.float64))  # so the error is linear
    value = nn.Sequential(model, nn.Linear(3, 1).double())
    score = TokenScore(value, table, goal)
    for search in (Beam(6, steps=4), HotFlip(6, steps=4), Genetic(queries=2000, generations=60)):
        spaces = [Substitutions.over(s, range(4), most=2) for s in starts]
        found = search(score, starts, spaces, reached=goal.tolerance, swaps=score.swaps)
        for row, one in enumerate(found):
            assert not one.success and one.candidate == starts[row]
            assert one.score == pytest.approx(best_of_all(score, starts[row], row, 4, 2))


def test_hotflip_needs_fewer_queries_than_greedy_and_estimates_are_exact_where_linear():
    model, table, starts, y = tokens(8, 12, seed=1)
    score = TokenScore(model, table, Targeted((y + 1) % 3))
    spaces = [Substitutions.over(s, range(12)) for s in starts]
    greedy, hot = (search(score, starts, spaces, swaps=score.swaps) for search in (Greedy(), HotFlip(1)))
    assert all(one.success for one in hot) and all(one.success for one in greedy)
    assert sum(one.queries for one in hot) * 5 < sum(one.queries for one in greedy)
    regression = TokenScore(nn.Sequential(model, Last()), table, LargerError(torch.full((6,), -99.0).double()))
    values, gains = regression.swaps(starts[:1], [0])
    flips = spaces[0].flips(starts[0], gains[0], 5)
    assert [g for g, _ in flips] == sorted((g for g, _ in flips), reverse=True)
    for gain, candidate in flips:
        assert float(regression([candidate], [0]) - values) == pytest.approx(gain)


class Last(nn.Module):
    def forward(self, z):
        return z[:, -1:]


def test_natural_errors_budgets_and_bad_input():
    model, table, starts, y = tokens()
    score = TokenScore(model, table, Untargeted((y + 1) % 3))
    spaces = [Substitutions.over(s, range(5)) for s in starts]
    assert all(
        one.natural and one.queries == 1 and one.candidate == s
        for one, s in zip(Greedy()(score, starts, spaces), starts, strict=True)
    )
    right = TokenScore(model, table, Untargeted(y))
    assert all(one.queries <= 7 for one in Greedy(queries=7)(right, starts, spaces))
    frozen = [Substitutions(s, ((),) * 6) for s in starts]
    for search in SEARCHES.values():
        assert not any(one.success for one in search(right, starts, frozen, swaps=right.swaps))
    for call in (
        lambda: Greedy()(right, starts, spaces[:2]), lambda: Substitutions(starts[0], ((1, 2),)),
        lambda: HotFlip()(right, starts, spaces), lambda: Beam(queries=0)(right, starts, spaces),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            call()
    rng = Random(0)
    space = Substitutions.over(starts[0], range(5), most=2)
    others = [space.mutated(space.mutated(starts[0], rng), rng) for _ in range(20)]
    assert all(space.changed(space.crossed(a, b, rng)) <= 2 for a in others for b in others)


# ---- models


def counts_source():
    """Letters of the canonical form: the same for every rewrite."""
    codec = FeatureCodec(lambda texts: [[standardise(text).count(letter) for letter in "CNOcn1="] for text in texts])
    return load(Vector(), codec=codec, takes="features", width=7, name="counts")


class Vector(nn.Module):
    def forward(self, features):
        return features


def test_a_model_that_reads_letters_moves_and_one_that_reads_molecules_does_not(tiny_source):
    y = [float(len(text)) for text in MOLECULES]
    model, _ = adapt(tiny_source, MOLECULES, y, program="none", mapping="ridge", progress=False)
    found = rewrite_robustness(model, MOLECULES, y, count=6)
    summary = found.summary()
    assert set(summary) == {"change", "worst_change", "error", "error_rewritten", "error_worst", "growth"}
    assert summary["worst_change"].value >= summary["change"].value > 0
    assert summary["error_worst"].value >= summary["error"].value and summary["growth"].n == len(MOLECULES)
    again = predict(model, found.text)
    assert np.allclose(again, found.output) and np.allclose(np.abs(again - found.clean[found.row]).max(1), found.moved)
    assert summary["change"].value == pytest.approx(
        np.mean([found.moved[found.row == row].mean() for row in range(len(MOLECULES))])
    )
    assert set(found.by_kind()) == set(KINDS) and found.by_kind()["rings"]["change"].n < len(MOLECULES)
    same, _ = adapt(counts_source(), MOLECULES, y, program="none", mapping="ridge", progress=False)
    still = rewrite_robustness(same, MOLECULES, y, count=6).summary()
    assert still["worst_change"].value < 1e-4 and still["growth"].value == pytest.approx(1, abs=1e-3)


def test_flips_of_classes_and_a_search_for_one(tiny_source):
    model, _ = adapt(
        tiny_source, MOLECULES * 3, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1] * 3, kind="classification", program="none",
        mapping="ridge", progress=False,
    )  # fmt: skip
    clean = predict(model, MOLECULES).argmax(1)
    found = rewrite_robustness(model, MOLECULES, clean, count=8)
    summary = found.summary()
    assert 0 < summary["flip_rate"].value <= summary["flipped"].value == pytest.approx(summary["error_worst"].value)
    assert summary["error"].value == 0 and np.isnan(summary["growth"].value)
    result = Beam(1, steps=2)(MoleculeScore(model, Untargeted(torch.tensor(clean))), MOLECULES, Rewrites(8))
    share = np.mean([one.success for one in result])
    assert share >= summary["flipped"].value > 0
    for one, smiles, label in zip(result, MOLECULES, clean, strict=True):
        assert standardise(one.candidate) == standardise(smiles)
        assert (predict(model, [one.candidate]).argmax(1)[0] != label) == one.success
    near = Analogues(MOLECULES[0], least=0.5)
    edited = Greedy(steps=1)(MoleculeScore(model, Untargeted(torch.tensor(clean[:1]))), MOLECULES[:1], near)[0]
    assert near.alike(edited.best) and edited.queries > 5


def test_rewrites_a_model_cannot_read_are_counted(tiny_source):
    model, _ = adapt(tiny_source, MOLECULES, list(range(10)), program="none", mapping="ridge", progress=False)
    found = rewrite_robustness(model, MOLECULES, count=6, kinds=("hydrogens",))
    assert found.refused > 0 and len(found.text) == len(found.row) > 0 and "error" not in found.summary()
    score = MoleculeScore(model, LargerError(torch.zeros(1), 1e9))
    assert score(["C" * 70, "CC"], [0, 0]).isfinite().tolist() == [False, True]
    with pytest.raises(DataError, match="row 1"):
        rewrite_robustness(model, ["CC", "C("])
    with pytest.raises(DataError, match="a truth"):
        rewrite_robustness(model, ["CC", "CO"], np.zeros((2, 3)))


def test_labels_with_gaps(tiny_source):
    labels = np.array([[0, 1], [1, np.nan], [1, 0], [0, 0], [1, 1]] * 2)
    model = Reprogrammed(Identity(), tiny_source, LinearMap(8, 2, kind="multilabel", ridge=True))
    from reprogram import fit

    fit(model, {"train": (MOLECULES, labels)}, progress=False)
    summary = rewrite_robustness(model, MOLECULES, labels, count=4).summary()
    assert 0 <= summary["flip_rate"].value <= 1 and np.isfinite(summary["error_worst"].value)
