"""Mixed precision and compiled sources: the same training, the same artefact."""

import numpy as np
import pytest
import torch

import reprogram as rp
from reprogram.programs import Additive, Coordinator, LowRank, Prefix, Rewriter, SampleMask, SeriesPad
from reprogram.sources import load

TEXTS = ["CCO", "CNO", "c1ccc1", "OOO", "NCCN", "CF"] * 8
WAVES = [np.sin(np.arange(20 + i % 5) * (0.3 + 0.2 * (i % 3))) * 4 + 7 for i in range(48)]
CLASSES = [i % 3 for i in range(48)]
CASES = {
    "image": lambda: Additive(),
    "image, one network per sample": lambda: SampleMask(),
    "image, resized inside": lambda: Coordinator(),
    "token": lambda: rp.SoftPrompt(prompt_length=3),
    "token, every layer": lambda: LowRank(Prefix(prompt_length=3), rank=2),
    "token, own table": lambda: rp.Dictionary(list("CNOcF1"), sparsity=3, atoms=20, split="characters"),
    "token, drawn": lambda: Rewriter(list("CNOcF1"), split="characters", hidden=8),
    "series": lambda: SeriesPad(),
}


@pytest.fixture
def given(request, pixel_source, bert_source, sound_source, pictures):
    """(new program, source, inputs) by name."""
    kinds = {"image": (pixel_source, pictures[0]), "token": (bert_source, TEXTS), "series": (sound_source, WAVES)}
    return CASES[request.param], *kinds[request.param.split(",")[0]]


@pytest.fixture
def precise():
    """An accelerator by precision; Accelerate keeps one state per process and refuses a second precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def make(precision):
        AcceleratorState._reset_state(True)
        return Accelerator(cpu=True, mixed_precision=precision)

    yield make
    AcceleratorState._reset_state(True)


def trained(program, source, inputs, mapping, **options):
    if mapping == "gp":
        last, loss = rp.GaussianProcess(source.width, 3, kind="classification"), rp.evidence
    else:
        last = rp.LinearMap(source.width, 3, kind="classification", ridge=mapping == "ridge")
        loss = rp.supervised
    model = rp.Reprogrammed(program, source, last)
    history = rp.fit(
        model, {"train": (inputs, CLASSES)}, loss=loss, epochs=3, progress=False, hooks=[rp.refresh], **options
    )
    return model, history.column("train_loss")


PAIRS = [(case, "linear") for case in CASES] + [
    (case, m) for case in ("image", "token", "series") for m in ("ridge", "gp")
]


@pytest.mark.parametrize("given, mapping", PAIRS, indirect=["given"])
def test_bfloat16_trains_alike(given, precise, mapping, monkeypatch):
    make, source, inputs = given
    _, whole = trained(make(), source, inputs, mapping, accelerator=precise("no"))
    accelerator, seen, solved = precise("bf16"), set(), set()
    source.network.register_forward_hook(lambda _, args, output: seen.add((torch.is_grad_enabled(), output.dtype)))
    for kind in (rp.LinearMap, rp.GaussianProcess):
        refit = kind.refit
        monkeypatch.setattr(kind, "refit", lambda self, f, y, refit=refit: (solved.add(f.dtype), refit(self, f, y))[1])
    model, half = trained(make(), source, inputs, mapping, accelerator=accelerator)
    assert half == pytest.approx(whole, abs=0.06)
    assert {(False, torch.float32)} <= seen  # features to solve for and to predict from are computed in full precision
    assert solved <= {torch.float32} and (solved or mapping == "linear")
    assert all(value.dtype != torch.bfloat16 for value in model.learned_state().values())
    assert {rp.predict(model, inputs, accelerator=a).dtype for a in (accelerator, None)} == {np.dtype("float32")}


def test_a_step_really_is_bfloat16(pixel_source, pictures, precise):
    seen = set()
    pixel_source.network.first.register_forward_hook(
        lambda _, args, output: seen.add((output.requires_grad, output.dtype))
    )
    trained(Additive(), pixel_source, pictures[0], "linear", accelerator=precise("bf16"))
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("given", ["image", pytest.param("token", marks=pytest.mark.slow), "series"], indirect=True)
def test_a_compiled_source_is_the_same_source(given, backend, tmp_path):
    make, source, inputs = given
    plain, whole = trained(make(), source, inputs, "linear")
    digest = source.digest
    source.compile(backend=backend)
    model, compiled = trained(make(), source, inputs, "linear")
    assert compiled == pytest.approx(whole, abs=1e-4)
    source._digest = None
    assert source.digest == digest
    model.save_pretrained(tmp_path)
    source.network._compiled_call_impl = None
    again = rp.Reprogrammed.from_pretrained(tmp_path, source=source)
    np.testing.assert_allclose(rp.predict(again, inputs), rp.predict(plain, inputs), atol=1e-4)


def test_a_module_compiled_before_it_came(pixel_source):
    options = {"codec": pixel_source.codec, "takes": "image", "width": 8, "returns": "logits", "name": "tiny-pixels"}
    compiled = load(torch.compile(pixel_source.network, backend="eager"), **options)
    assert compiled.digest == pixel_source.digest
    batch = pixel_source.codec.noise(2)
    torch.testing.assert_close(compiled(batch), pixel_source(batch))


@pytest.mark.parametrize("program", [lambda: Prefix(), lambda: LowRank(rp.Identity())])
def test_programs_inside_the_layers_refuse_compiled_code(bert_source, program):
    model = rp.Reprogrammed(program(), bert_source, rp.LinearMap(16))
    bert_source.compile(backend="eager")
    with pytest.raises(ValueError, match="a source that is not compiled for deep prompts or low-rank updates"):
        rp.predict(model, TEXTS)
