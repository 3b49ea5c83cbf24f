"""Deep prompts beside a layer loop written by hand, and the frozen source that they leave as it was."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

import reprogram as rp
from reprogram.parts import build_program
from reprogram.programs import Prefix
from reprogram.sources.hub import MeanPooled
from reprogram.sources.layers import layers_of, reading

TEXTS = ["CCO", "CNOCNOCN", "c1ccc1"]


def composed(source, program):
    return rp.Reprogrammed(program, source, rp.LinearMap(source.width))


def features(model, texts=TEXTS):
    return model.features(model.collate(model.encode(texts)))


def shaken(program, seed=0):
    """The program after its numbers were moved away from the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in program.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator))
    return program


def by_hand(source, program, texts):
    """Mean of the last states of a BERT whose prompt positions are overwritten before each layer, one text at a time."""
    bert, found = source.network.model, []
    for text in texts:
        ids = source.codec.encode([text])[0]["input_ids"]
        states = bert.embeddings(inputs_embeds=torch.cat([program.soft.prompt, source.embedding[ids]])[None])
        for k, layer in enumerate(bert.encoder.layer):
            if 0 < k <= len(program.deep):
                states = torch.cat([program.deep[k - 1][None], states[:, program.deep.shape[1] :]], dim=1)
            states = layer(states, None)
        found.append(states.mean(1))
    return torch.cat(found)


@pytest.mark.parametrize("depth", [None, 1, 2, 3])
def test_equals_a_layer_loop_by_hand(bert_source, depth):
    model = composed(bert_source, Prefix(prompt_length=4, depth=depth))
    assert model.program.deep.shape == ((depth or 3) - 1, 4, 16)
    shaken(model.program)
    torch.testing.assert_close(features(model), by_hand(bert_source, model.program, TEXTS), rtol=1e-4, atol=1e-5)


def test_a_depth_of_one_is_a_soft_prompt(bert_source):
    deep, soft = Prefix(prompt_length=4, depth=1), rp.SoftPrompt(prompt_length=4)
    assert torch.equal(features(composed(bert_source, deep)), features(composed(bert_source, soft)))


def test_the_start_is_what_the_layers_make_of_the_prompt(bert_source):
    """Without tokens behind it the deep prompt changes nothing: each layer would have read these very states."""
    program = composed(bert_source, Prefix(prompt_length=4)).program
    batch = {"inputs_embeds": program.soft.prompt[None], "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    torch.testing.assert_close(bert_source(batch | {"deep": program.deep}), bert_source(batch), rtol=1e-5, atol=1e-6)


def test_the_gradient_reaches_the_prompt_of_every_layer(bert_source):
    model = composed(bert_source, Prefix(prompt_length=4))
    features(model).square().sum().backward()
    assert model.program.soft.prompt.grad.abs().sum() > 0
    assert (model.program.deep.grad.abs().sum((1, 2)) > 0).all()
    assert all(weight.grad is None for weight in bert_source.parameters())


def test_two_models_share_a_source_and_leave_nothing_in_it(bert_source):
    digest = bert_source.digest
    native = features(composed(bert_source, rp.Identity()))
    first, second = (composed(bert_source, Prefix(prompt_length=n, seed=n)) for n in (3, 5))
    shaken(first.program), shaken(second.program, 1)
    a, b = features(first), features(second)
    assert torch.equal(features(first), a) and torch.equal(features(second), b)
    assert torch.equal(features(composed(bert_source, rp.Identity())), native)
    assert not any(layer._forward_pre_hooks for layer in bert_source.network.modules())
    bert_source._digest = None
    assert bert_source.digest == digest


def test_a_failing_pass_leaves_no_hook_behind(bert_source):
    model = composed(bert_source, Prefix(prompt_length=4))
    with pytest.raises(RuntimeError):
        bert_source(model.program(model.collate(model.encode(TEXTS))) | {"deep": torch.zeros(2, 4, 7)})
    assert not any(layer._forward_pre_hooks for layer in bert_source.network.modules())


def test_threads_do_not_read_each_others_prompts(bert_source):
    """A server answers in threads: inside the pass of one thread another one runs the same frozen network."""
    model = composed(bert_source, Prefix(prompt_length=4))
    shaken(model.program)
    native, found = features(composed(bert_source, rp.Identity())), []

    def other(number, states):
        if number == 1:
            thread = threading.Thread(target=lambda: found.append(features(composed(bert_source, rp.Identity()))))
            thread.start()
            thread.join()
        return states

    alone = features(model)
    with reading(bert_source.network.layers(), other):
        together = features(model)
    assert torch.equal(together, alone) and torch.equal(found[0], native)


@pytest.mark.parametrize("kind", ["Albert", "DistilBert", "T5", "GPT2", "Roberta"])
def test_encoders_of_other_families_read_it_in_every_layer(kind):
    import transformers

    options = {
        "Albert": {"embedding_size": 8, "num_hidden_groups": 1}, "DistilBert": {"hidden_dim": 24}, "GPT2": {},
        "T5": {"d_kv": 8, "d_ff": 24}, "Roberta": {"max_position_embeddings": 66},
    }[kind]  # fmt: skip
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    config = getattr(transformers, f"{kind}Config")(vocab_size=20, **sizes | options)
    network = MeanPooled(getattr(transformers, "T5EncoderModel" if kind == "T5" else f"{kind}Model")(config)).eval()
    assert len(layers_of(network.model)) == (1 if kind == "Albert" else 3)
    embeds = torch.randn(2, 7, 8 if kind == "Albert" else 16)
    deep = torch.randn(2, 3, 16, requires_grad=True)
    mask = torch.ones(2, 7, dtype=torch.long)
    network(inputs_embeds=embeds, attention_mask=mask, deep=deep)[:, 0].sum().backward()
    assert (deep.grad.abs().sum((1, 2)) > 0).all()


def test_annalog_reads_it():
    pytest.importorskip("annalog")
    model = composed(rp.load("annalog"), Prefix(prompt_length=2))
    assert model.program.deep.shape == (2, 2, 256)
    features(model, ["CCO", "CCCCN"]).square().sum().backward()
    assert (model.program.deep.grad.abs().sum((1, 2)) > 0).all()


def test_sources_without_layers_are_one_sentence(tiny_source, pixel_source, bert_source):
    for source in (tiny_source, pixel_source, rp.SideBySide([bert_source, bert_source])):
        with pytest.raises(ValueError, match=r"expected a source of transformer layers .* use SoftPrompt"):
            composed(source, Prefix())
    for depth in (0, 4):
        with pytest.raises(rp.DataError, match=f"depth from 1 to 3, the layers of the source, got {depth}"):
            composed(bert_source, Prefix(depth=depth))

    class Turned(nn.Module):
        """A network of layers that read (positions, rows, width)."""

        def __init__(self):
            super().__init__()
            self.block = nn.Linear(16, 16)

        def layers(self):
            return [self.block]

        def forward(self, inputs_embeds, attention_mask, deep=None):
            return self.block(inputs_embeds.transpose(0, 1)).mean(0)

    turned = rp.load(
        Turned(), codec=bert_source.codec, takes="tokens", width=16, embedding=bert_source.embedding, name="turned"
    )
    with pytest.raises(ValueError, match=r"rows, positions, width.*, got \(8, 1, 16\)"):
        composed(turned, Prefix())


def test_by_name(bert_source):
    program = build_program("prefix", bert_source, TEXTS, 0)
    assert isinstance(program, Prefix)
    model, _ = rp.adapt(bert_source, TEXTS * 4, range(12), program="prefix", mapping="linear", epochs=2, progress=False)
    assert np.isfinite(rp.predict(model, TEXTS)).all()
