"""ANNalog's decoder with kept keys and values against the same network read in full."""

import pytest
import torch

pytest.importorskip("annalog")

from reprogram.sources import load
from reprogram.sources.decoding import Decoder, beam, sample, still

SMILES = ["CC(C)Cc1ccc(cc1)C(C)C(=O)O", "CC(=O)Nc1ccc(O)cc1", "Clc1cc[nH]c1"]


@pytest.fixture(scope="module")
def annalog():
    source = load("annalog")
    batch = source.codec.collate(source.codec.encode(SMILES))
    model = source.network.model
    with torch.no_grad():
        memory = model.encode(model.encoder.tokens(batch["input_ids"]), batch["attention_mask"])
    words = source.codec.vocabulary
    return model, memory, batch, {"start": words["<sos>"], "end": words["<eos>"]}


@torch.no_grad()
def test_one_token_at_a_time_equals_teacher_forcing(annalog):
    model, memory, batch, _ = annalog
    ids, mask = batch["input_ids"].repeat_interleave(2, 0), batch["attention_mask"]
    whole = model.decode(ids, memory.repeat_interleave(2, 0), mask.repeat_interleave(2, 0))
    decoder = Decoder(model, memory, mask, copies=2)
    steps = torch.stack([decoder(column) for column in ids.T], dim=1)
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=1e-4)


def likelihood(model, memory, mask, ids, start, end):
    """Log-likelihood of sequences (n, T) by reading them in full."""
    first = torch.full((len(ids), 1), start)
    logits = model.decode(torch.cat([first, ids[:, :-1]], 1), memory, mask).log_softmax(2)
    own = logits.gather(2, ids[..., None])[..., 0]
    written = torch.arange(ids.shape[1]) <= (ids == end).long().argmax(1, keepdim=True)
    return (own * written).sum(1)


@torch.no_grad()
def test_greedy_is_the_likeliest_token_each_time(annalog):
    model, memory, batch, marks = annalog
    ids = sample(model, memory, batch["attention_mask"], **marks, temperature=0.0)
    first = torch.full((len(ids), 1), marks["start"])
    logits = model.decode(torch.cat([first, ids[:, :-1]], 1), memory, batch["attention_mask"])
    written = torch.arange(ids.shape[1]) <= (ids == marks["end"]).long().argmax(1, keepdim=True)
    assert torch.equal(logits.argmax(2)[written], ids[written])


def test_a_row_does_not_depend_on_its_batch_mates(annalog):
    model, memory, batch, marks = annalog
    mask, draws = batch["attention_mask"], {"temperature": 1.2, "copies": 4}
    together = sample(model, memory, mask, **marks, **draws, generator=torch.Generator().manual_seed(3))
    # the first molecule's rows draw first from the generator, so alone they draw the same numbers
    alone = sample(model, memory[:1], mask[:1], **marks, **draws, generator=torch.Generator().manual_seed(3))
    assert torch.equal(together[:4], alone)


def test_drawn_tokens_follow_the_softmax(annalog):
    model, memory, batch, marks = annalog
    found = sample(
        model, memory[1:2], batch["attention_mask"][1:2], **marks, copies=500,
        generator=torch.Generator().manual_seed(0),
    )[:, 0]  # fmt: skip
    with torch.no_grad():
        logits = Decoder(model, memory[1:2], batch["attention_mask"][1:2])(torch.tensor([marks["start"]]))
    expected = logits.softmax(1)[0]
    share = torch.bincount(found, minlength=len(expected)) / len(found)
    deviation = (expected * (1 - expected) / len(found)).sqrt()
    assert ((share - expected).abs() <= 5 * deviation + 4e-3).all()


@torch.no_grad()
def test_beams_are_ordered_and_no_less_likely_than_greedy(annalog):
    model, memory, batch, marks = annalog
    mask = batch["attention_mask"]
    greedy = likelihood(model, memory, mask, sample(model, memory, mask, **marks, temperature=0.0), **marks)
    found = beam(model, memory, mask, **marks, width=4)
    scores = torch.stack([likelihood(model, memory, mask, found[:, i], **marks) for i in range(4)], 1)
    assert (scores[:, 0] >= greedy - 1e-3).all()
    assert (scores[:, :-1] >= scores[:, 1:] - 1e-3).all()
    assert torch.equal(
        beam(model, memory, mask, **marks, width=1)[:, 0], sample(model, memory, mask, **marks, temperature=0.0)
    )


def test_finished_rows_leave_together():
    going = torch.tensor([[True, False, True], [False, False, False], [False, False, True]])
    groups, rows = still(going)
    assert groups.tolist() == [0, 2]
    assert rows.tolist()[:2] == [0, 2]
    assert len(rows) == 4
    assert 8 in rows.tolist()
