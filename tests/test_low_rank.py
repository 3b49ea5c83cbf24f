"""Low-rank updates beside a program: equal to peft, part of the artefact, and nothing of them stays in the source."""

import copy

import numpy as np
import pytest
import torch

import reprogram as rp
from reprogram.gradient import program_parameters
from reprogram.programs import LowRank, Prefix, from_peft
from reprogram.sources.hub import MeanPooled

TEXTS = ["CCO", "CNOCNOCN", "c1ccc1", "OO"] * 5
TARGETS = [float(text.count("C") - text.count("O")) for text in TEXTS]


def composed(source, program):
    return rp.Reprogrammed(program, source, rp.LinearMap(source.width))


def features(model, texts=TEXTS[:4]):
    return model.features(model.collate(model.encode(texts)))


def shaken(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module


def peft_model(source, **options):
    peft = pytest.importorskip("peft")
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value"]} | options
    return shaken(peft.get_peft_model(copy.deepcopy(source.network.model), peft.LoraConfig(**settings)))


def source_around(source, network):
    return rp.load(
        MeanPooled(network), codec=source.codec, takes="tokens", width=16, name="tiny-bert",
        embedding=network.get_input_embeddings().weight,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_a_peft_model_becomes_program_and_frozen_source(bert_source, tmp_path):
    given = peft_model(bert_source)
    batch = bert_source.codec.collate(bert_source.codec.encode(TEXTS[:4]))
    there = MeanPooled(given)(**batch)
    there.square().sum().backward()
    wanted = [p.grad.clone() for _, p in sorted(given.named_parameters()) if p.grad is not None]
    program, network = from_peft(given, rp.Identity())
    source = source_around(bert_source, network)
    assert source.digest == bert_source.digest
    model = composed(source, program)
    here = features(model)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)
    here.square().sum().backward()
    halves = zip(program.names, program.adapter["down"], program.adapter["up"], strict=True)
    got = [p.grad for _, *pair in sorted(halves, key=lambda row: row[0]) for p in pair]
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = rp.Reprogrammed.from_pretrained(tmp_path, source=bert_source)  # loaded by the name of the base alone
    assert np.array_equal(rp.predict(again, TEXTS), rp.predict(model, TEXTS))


def test_program_and_updates_learn_together_and_the_base_does_not(bert_source, tmp_path):
    digest, before = bert_source.digest, copy.deepcopy(bert_source.network.state_dict())
    model = composed(bert_source, LowRank(rp.SoftPrompt(prompt_length=2), rank=2, layers=["query", "value"]))
    names = {name for name, _ in model.trainable()}
    assert {"program.program.prompt", "program.adapter.down.0", "program.adapter.up.5", "mapping.linear.bias"} <= names
    start = copy.deepcopy(model.learned_state())
    history = rp.fit(model, {"train": (TEXTS, TARGETS)}, epochs=15, progress=False)
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
    moved = [key for key, value in model.learned_state().items() if not torch.equal(start[key], value)]
    assert {"program.program.prompt", *(f"program.adapter.up.{i}" for i in range(6))} <= set(moved)
    assert all(torch.equal(before[key], value) for key, value in bert_source.network.state_dict().items())
    assert not any(layer._forward_hooks for layer in bert_source.network.modules())
    model.save_pretrained(tmp_path)
    again = rp.Reprogrammed.from_pretrained(tmp_path, source=bert_source)
    assert np.array_equal(rp.predict(again, TEXTS), rp.predict(model, TEXTS))
    bert_source._digest = None
    assert bert_source.digest == digest


def test_two_models_share_a_source(bert_source):
    native = features(composed(bert_source, rp.Identity()))
    models = [composed(bert_source, LowRank(program, rank=2, seed=i)) for i, program in
              enumerate([rp.Identity(), Prefix(prompt_length=2)])]  # fmt: skip
    assert torch.equal(features(models[0]), native)  # B is 0
    outputs = [features(shaken(model)) for model in models]
    assert not torch.allclose(outputs[0], native)
    assert all(torch.equal(features(model), output) for model, output in zip(models, outputs, strict=True))
    assert torch.equal(features(composed(bert_source, rp.Identity())), native)


def test_updates_have_a_learning_rate_of_their_own(bert_source):
    model = composed(bert_source, LowRank(rp.SoftPrompt(prompt_length=2), rank=2, layers=["query"]))
    groups = rp.adam(program=0.3, mapping=0.2, adapter=0.1)(model).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.3, 1), (0.2, 2), (0.1, 6)]
    assert len(rp.momentum()(model).param_groups) == 3
    assert len(program_parameters(model)) == 7


def test_any_source_with_linear_layers_takes_them(pixel_source, pictures):
    model = rp.Reprogrammed(
        LowRank(rp.programs.Additive(), rank=2), pixel_source, rp.LinearMap(8, 3, kind="classification")
    )
    before = copy.deepcopy(pixel_source.network.state_dict())
    history = rp.fit(model, {"train": pictures}, epochs=4, progress=False)
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
    assert all(torch.equal(before[key], value) for key, value in pixel_source.network.state_dict().items())


def test_transposed_linear_layers_of_gpt2():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    network = MeanPooled(GPT2Model(GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=32)))
    codec = rp.sources.TokenCodec(list, {"C": 4}, unknown=3, pad=2, before=(0,), after=(), max_length=32)
    source = rp.load(network, codec=codec, takes="tokens", width=16, name="gpt")
    model = composed(source, LowRank(rp.Identity(), rank=2, layers=["c_attn"]))
    assert [tuple(b.shape) for b in model.program.adapter["up"]] == [(48, 2), (48, 2)]
    features(model, ["CCN", "C"]).square().sum().backward()
    assert all(b.grad.abs().sum() > 0 for b in model.program.adapter["up"])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_peft_where_it_cannot_learn_is_one_sentence(bert_source):
    given = peft_model(bert_source)
    with pytest.raises(ValueError, match=r"peft adapters that are to be trained; take programs\.from_peft"):
        source_around(bert_source, given)
    from peft import LoraConfig, get_peft_model

    model = composed(bert_source, rp.SoftPrompt(prompt_length=2))
    get_peft_model(
        bert_source.network.model, LoraConfig(r=2, target_modules=["query"])
    )  # inside the source's own network
    with pytest.raises(ValueError, match="peft adapters"):
        rp.fit(model, {"train": (TEXTS, TARGETS)}, epochs=1, progress=False)
    merged = given.merge_and_unload()
    assert source_around(bert_source, merged).digest != bert_source.digest


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize(
    "options, message",
    [
        ({"use_dora": True}, "plain LoRA, got use_dora"),
        ({"bias": "all"}, "plain LoRA, got bias"),
        ({"rank_pattern": {"value": 2}}, "one rank and scale"),
    ],
)
def test_adapters_of_another_kind_are_refused(bert_source, options, message):
    with pytest.raises(rp.DataError, match=message):
        from_peft(peft_model(bert_source, **options), rp.Identity())


def test_wrong_calls_are_one_sentence(bert_source, sound_source):
    with pytest.raises(rp.DataError, match="a peft model with LoRA, got BertModel"):
        from_peft(bert_source.network.model, rp.Identity())
    with pytest.raises(rp.DataError, match="rank of at least 1"):
        LowRank(rp.Identity(), rank=0)
    with pytest.raises(ValueError, match=r"named 'q_proj' to adapt in 'tiny-bert', got model\.encoder"):
        composed(bert_source, LowRank(rp.Identity(), layers=["query", "q_proj"]))
    box = rp.Source(
        rp.BlackBox(lambda x: x), sound_source.codec, name="box", takes="series", width=6, returns="logits",
        differentiable=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="none that a gradient reaches"):
        composed(box, LowRank(rp.programs.SeriesPad()))
