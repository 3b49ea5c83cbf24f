"""Programs for images, series, tables and texts: their formulas, the laws of every program, and bad inputs."""

import copy
import io

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reprogram import Reprogrammed
from reprogram.config import build, to_spec
from reprogram.errors import DataError
from reprogram.label_map import LabelMap
from reprogram.mapping import LinearMap
from reprogram.objectives import adam
from reprogram.programs import (
    Additive,
    Affine,
    FeatureCanvas,
    Pad,
    Patches,
    Prefix,
    Resize,
    Rewriter,
    SampleMask,
    SeriesPad,
    TableTokens,
    TokenGrid,
    moments,
)
from reprogram.sources.images import as_image
from reprogram.train import fit, predict

TEXTS = ["CCO", "CNO", "c1ccc1", "OOO", "NCCN", "CF"] * 4
ROWS = [[float(i % 3), 5.0 * (i % 2), i / 7] for i in range(24)]
WAVES = [np.sin(np.arange(20 + i % 5) * (0.3 + 0.2 * (i % 3))) * 4 + 7 for i in range(24)]
MANY_WAVES = [np.stack([wave, wave[::-1] + 2]) for wave in WAVES]

PROGRAMS = {
    "pad": (lambda: Pad(image_size=12), "pictures"),
    "full": (lambda: Additive(), "pictures"),
    "strip": (lambda: Additive(region="strip", width=5), "pictures"),
    "patch": (lambda: Additive(region="patch", width=7), "pictures"),
    "resize": (lambda: Resize(scale=0.5), "pictures"),
    "mask": (lambda: SampleMask(), "pictures"),
    "affine": (lambda: Affine(), "pictures"),
    "grid": (lambda: TokenGrid(list("CNOcF1"), patch=8), "texts"),
    "canvas": (lambda: FeatureCanvas(**moments(ROWS)), "rows"),
    "words": (lambda: TableTokens(**moments(ROWS)), "rows to tokens"),
    "rewriter": (lambda: Rewriter(list("CNOcF1"), split="characters", hidden=8), "texts to tokens"),
    "prefix": (lambda: Prefix(prompt_length=2), "texts to layers"),
    "series": (lambda: SeriesPad(replicas=2, dropout=0.3), "waves"),
    "patches": (lambda: Patches(patch=8, stride=4, width=8, heads=2, prototypes=5), "waves to tokens"),
}


@pytest.fixture
def given(request, pixel_source, sound_source, tiny_source, bert_source, pictures):
    """(program, source, inputs) by name."""
    make, kind = PROGRAMS[request.param]
    inputs = {
        "pictures": pictures[0][:24], "texts": TEXTS, "rows": ROWS, "rows to tokens": ROWS, "texts to tokens": TEXTS,
        "waves": WAVES, "waves to tokens": MANY_WAVES, "texts to layers": TEXTS,
    }[kind]  # fmt: skip
    sources = {"tokens": tiny_source, "waves": sound_source, "layers": bert_source}
    source = sources.get(kind.split()[-1], pixel_source)
    return make(), source, inputs


def each(names=PROGRAMS):
    return pytest.mark.parametrize("given", list(names), indirect=True)


def classes(count=24):
    return [int(i % 3 == 0) for i in range(count)]


def assembled(program, source):
    return Reprogrammed(program, source, LinearMap(source.width, 2, kind="classification"))


@each()
def test_training_moves_the_program_and_never_the_source(given):
    program, source, inputs = given
    model = assembled(program, source)
    before, digest = copy.deepcopy(model.learned_state()), source.digest
    history = fit(model, {"train": (inputs, classes())}, optimizer=adam(program=0.05), epochs=12, progress=False)
    assert min(history.column("train_loss")[1:]) < history.column("train_loss")[0]
    assert any(not torch.equal(before[k], v) for k, v in model.learned_state().items() if k.startswith("program."))
    source._digest = None
    assert source.digest == digest
    assert not source.network.training
    assert not model.program.training


@each()
def test_one_forward_and_one_backward_of_the_source_per_step(given):
    program, source, inputs = given
    model, passes = assembled(program, source), {"forward": 0, "backward": 0}

    def backward(gradient):
        passes["backward"] += 1

    def forward(network, args, output):
        passes["forward"] += 1
        if output.requires_grad:
            output.register_hook(backward)

    source.network.register_forward_hook(forward)
    fit(model, {"train": (inputs, classes())}, epochs=3, batch_size=8, progress=False)
    assert passes == {"forward": 3 * 3 + 1, "backward": 3 * 3}  # once before, to standardise


@each()
def test_save_and_load_is_identity(given, tmp_path):
    program, source, inputs = given
    model = assembled(program, source)
    fit(model, {"train": (inputs, classes())}, optimizer=adam(program=0.05), epochs=2, progress=False)
    model.save_pretrained(tmp_path / "model")
    again = Reprogrammed.from_pretrained(tmp_path / "model", source=source)
    assert np.array_equal(predict(again, inputs), predict(model, inputs))
    assert to_spec(build(to_spec(program))) == to_spec(program)


@each()
def test_a_row_does_not_depend_on_its_batch_mates(given):
    program, source, inputs = given
    model = assembled(program, source).eval()
    with torch.no_grad():
        for p in model.program.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        together = model.features(model.collate(model.encode(inputs[:7])))
        alone = torch.cat([model.features(model.collate(model.encode([x]))) for x in inputs[:7]])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@each()
def test_interrupted_and_resumed_equals_uninterrupted(given, tmp_path):
    program, source, inputs = given
    options = {"optimizer": adam(program=0.05), "epochs": 3, "batch_size": 8, "progress": False, "checkpoint_every": 1}

    def stop(training):
        if training.epoch == 1:
            raise KeyboardInterrupt

    whole, halves = (assembled(build(to_spec(program)), source) for _ in range(2))
    fit(whole, {"train": (inputs, classes())}, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(halves, {"train": (inputs, classes())}, hooks=[stop], checkpoint_dir=tmp_path, **options)
    halves = assembled(build(to_spec(program)), source)
    fit(halves, {"train": (inputs, classes())}, checkpoint_dir=tmp_path, **options)
    for key, value in whole.learned_state().items():
        assert torch.equal(value, halves.learned_state()[key]), key


@each(["full", "strip", "patch", "mask", "affine"])
def test_additive_programs_start_at_the_frozen_source(given):
    program, source, inputs = given
    model = assembled(program, source)
    pixels = source.codec.collate(source.codec.encode(inputs))["pixels"]
    torch.testing.assert_close(model.program(model.collate(model.encode(inputs)))["pixels"], pixels, atol=1e-5, rtol=0)


def test_the_frame_is_where_the_image_is_not(pixel_source, pictures):
    x = torch.from_numpy(np.stack(pictures[0][:4]))
    program = Pad(image_size=12)
    program.bind(pixel_source)
    assert program.frame.numel() == 3 * (32 * 32 - 12 * 12)
    torch.nn.init.normal_(program.frame)
    out = program(program.collate(program.encode(pictures[0][:4])))["pixels"]
    torch.testing.assert_close(out[:, :, 10:22, 10:22], x[:, None].expand(-1, 3, -1, -1))
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[10:22, 10:22] = False
    frame = 0.5 * (1 + torch.tanh(program.frame))  # Elsayed's tanh, moved from [-1, 1] to [0, 1]
    torch.testing.assert_close(out[:, :, mask], frame.expand(4, -1, -1))


@pytest.mark.parametrize("region, expected", [("full", 32 * 32), ("strip", 32 * 32 - 22 * 22), ("patch", 25)])
def test_the_change_acts_on_its_region_alone(pixel_source, pictures, region, expected):
    program = Additive(region=region, width=5)
    program.bind(pixel_source)
    batch = program.collate(program.encode(pictures[0][:2]))
    torch.nn.init.constant_(program.delta, 0.5)
    change = program(batch)["pixels"] - batch["image"]
    assert int((change[0, 0] != 0).sum()) == expected
    torch.testing.assert_close(change[:, :, 0, 0], torch.full((2, 3), 0.5))


def test_the_size_is_learned(pixel_source, pictures):
    program = Resize(scale=0.5)
    program.bind(pixel_source)
    batch = program.collate(program.encode(pictures[0][:3]))
    out = program(batch)["pixels"]
    inside = F.interpolate(batch["image"], (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out[:, :, 9:23, 9:23], inside[:, :, 1:15, 1:15], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, :, :7], torch.full((3, 3, 7, 32), 0.5))
    program(batch)["pixels"].square().sum().backward()
    assert program.scale.grad.abs() > 0
    with torch.no_grad():
        program.scale.fill_(7.0)
    program.project()
    assert program.scale == 1


def test_the_mask_network_has_the_published_size(pixel_source):
    program = SampleMask()
    program.bind(pixel_source)
    assert sum(p.numel() for p in program.masks.parameters()) == 26_499


def test_a_text_fills_the_grid_row_by_row(pixel_source):
    program = TokenGrid(list("AB"), patch=8, split="characters")
    program.bind(pixel_source)
    out = program(program.collate(program.encode(["ABxAB", "B"])))["pixels"]
    cells = (2 * program.patches).sigmoid()
    torch.testing.assert_close(out[0, :, 0:8, 8:16], cells[2])
    torch.testing.assert_close(out[0, :, 0:8, 16:24], cells[0])  # unknown
    torch.testing.assert_close(out[0, :, 8:16, 0:8], cells[2])  # the fifth opens the second row
    torch.testing.assert_close(out[1, :, 0:8, 0:8], cells[2])
    torch.testing.assert_close(out[1, :, :, 8:], torch.full((3, 32, 24), 0.5))


def test_a_series_lies_in_the_noise_and_the_mask_is_applied(sound_source):
    program = SeriesPad(replicas=2, dropout=0.0)
    program.bind(sound_source)
    torch.nn.init.constant_(program.theta, 9.0)
    wave = np.array([1.0, 2.0, 3.0, 2.0])
    out = program(program.collate(program.encode([wave, np.arange(64.0)])))["series"]
    unit = torch.from_numpy((wave - wave.mean()) / wave.std()).float()
    for start in (14, 46):  # in the middle of each half of 64 samples
        torch.testing.assert_close(out[0, start : start + 4], unit)
    assert int((out[0] == 9).sum()) == 64 - 8
    assert not (out[1] == 9).any()  # a series as long as its place leaves none


def test_dropout_acts_in_training_alone(sound_source):
    program = SeriesPad(dropout=0.5)
    program.bind(sound_source)
    torch.nn.init.ones_(program.theta)
    batch = program.collate(program.encode([[1.0, 2.0]]))
    program.train()
    assert set(program(batch)["series"][0, :31].tolist()) == {0.0, 2.0}
    program.eval()
    assert set(program(batch)["series"][0, :31].tolist()) == {1.0}


def test_patches_are_answered_in_the_sources_words(tiny_source):
    program = Patches(patch=4, stride=2, width=8, heads=2, prototypes=5, dropout=0.0)
    program.bind(tiny_source)
    out = program(program.collate(program.encode([np.arange(10.0)])))
    count = (10 - 4) // 2 + 2
    assert out["inputs_embeds"].shape == (1, 1 + count, 8)  # the source's own start token first
    torch.testing.assert_close(out["inputs_embeds"][0, 0], tiny_source.embedding[0])


def test_the_rewriter_only_ever_writes_known_tokens(tiny_source):
    program = Rewriter(list("CNO"), split="characters", hidden=8)
    program.bind(tiny_source)
    batch = program.collate(program.encode(["CCNO", "OC"]))
    for mode in (True, False):
        program.train(mode)
        rows = program(batch)["inputs_embeds"][0, 1:5]
        gap = torch.cdist(rows, tiny_source.embedding).min(1).values
        torch.testing.assert_close(gap, torch.zeros(4), atol=1e-3, rtol=0)


def png(array):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_form_of_an_image_is_read_alike(tmp_path):
    from PIL import Image

    grid = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    expected = torch.from_numpy(grid).permute(2, 0, 1) / 255
    (tmp_path / "a.png").write_bytes(png(grid))
    alpha = np.concatenate([grid, np.full((6, 5, 1), 7, dtype=np.uint8)], axis=2)
    forms = [grid, grid / 255, torch.from_numpy(grid).permute(2, 0, 1), Image.fromarray(grid), tmp_path / "a.png",
             str(tmp_path / "a.png"), alpha]  # fmt: skip
    for form in forms:
        torch.testing.assert_close(as_image(form, 0), expected, atol=1e-6, rtol=0)
    grey = grid[..., 0]
    for form in (grey, grey / 255.0, Image.fromarray(grey), torch.from_numpy(grey)[None]):
        torch.testing.assert_close(as_image(form, 0), expected[:1].expand(3, -1, -1), atol=1e-6, rtol=0)
    assert as_image(grid, 0, channels=1).shape == (1, 6, 5)


@pytest.mark.parametrize(
    "value, message",
    [
        (np.full((4, 4), 3.0), "numbers in .0, 1., as pixels, got 3 to 3 in row 1; divide"),
        (np.full((4, 4), np.nan), "got nan to nan in row 1"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "1, 3 or 4 channels in row 1, got .4, 4, 2."),
        (np.zeros(4, dtype=np.uint8), "got .4,."),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), "got .2, 4, 4, 3."),
        ("nowhere.png", "expected a readable image in row 1, got 'nowhere.png'"),
        ([[0.1]], "expected an image file, a PIL image, an array or a tensor in row 1, got list"),
    ],
)
def test_bad_images_are_one_sentence(pixel_source, value, message):
    program = Additive()
    program.bind(pixel_source)
    with pytest.raises((ValueError, TypeError), match=message):
        program.encode([np.zeros((4, 4), dtype=np.uint8), value])


@pytest.mark.parametrize(
    "value, message",
    [
        ([1.0, np.nan], "without gaps in row 1, got nan at position 1"),
        ([], "expected a series"),
        (["a"], "expected a series of numbers in row 1"),
        (np.zeros((2, 2, 2)), "got .2, 2, 2."),
    ],
)
def test_bad_series_are_one_sentence(sound_source, value, message):
    for program in (SeriesPad(),):
        program.bind(sound_source)
        with pytest.raises(ValueError, match=message):
            program.encode([[1.0, 2.0], value])


@pytest.mark.parametrize(
    "make, inputs, message",
    [
        (lambda: TokenGrid(list("AB"), patch=16, split="characters"), ["ABABA"], "1 to 4 tokens on the grid, got 5"),
        (lambda: FeatureCanvas(**moments(ROWS)), [[1.0, 2.0]], "expected 3 finite numbers in row 0, got 2"),
        (lambda: FeatureCanvas(**moments(ROWS)), [[1.0, 2.0, np.inf]], "got NaN or infinity"),
        (lambda: FeatureCanvas(**moments(ROWS)), [["red", 2.0, 1.0]], "encode categories first"),
    ],
)
def test_inputs_that_do_not_fit_are_one_sentence(pixel_source, make, inputs, message):
    program = make()
    program.bind(pixel_source)
    with pytest.raises(ValueError, match=message):
        program.encode(inputs)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Pad(image_size=40), "image_size from 1 to 32, got 40"),
        (lambda: Additive(region="strip", width=17), "fits into 32×32 pixels, got 17"),
        (lambda: Additive(region="corner"), "full, strip or patch"),
        (lambda: Resize(scale=2), "scale from 0.1 to 1"),
        (lambda: TokenGrid(["A"], patch=64), "patch no larger than 32"),
        (lambda: FeatureCanvas([0.0] * 999, [1.0] * 999), "at most 256 features, got 999"),
    ],
)
def test_wrong_options_are_one_sentence(pixel_source, make, message):
    with pytest.raises(DataError, match=message):
        program = make()
        program.bind(pixel_source)
        program.collate(program.encode(["A"])) if isinstance(program, TokenGrid) else program.block()


@each(["pad", "series", "patches", "words"])
def test_programs_refuse_sources_of_another_kind(given, tiny_source, pixel_source, sound_source):
    program, source, _ = given
    for other in (tiny_source, pixel_source, sound_source):
        if other is not source:
            with pytest.raises(ValueError, match="expected a source"):
                copy.deepcopy(program).bind(other)


def test_label_maps_and_programs_go_together(pixel_source, pictures, tmp_path):
    x, y = pictures
    model = Reprogrammed(Pad(image_size=16), pixel_source, LabelMap(8, 3, method="bayesian+"))
    fit(model, {"train": (x[:24], y[:24]), "validation": (x[24:], y[24:])}, epochs=5, progress=False)
    model.save_pretrained(tmp_path / "model")
    again = Reprogrammed.from_pretrained(tmp_path / "model", source=pixel_source)
    assert np.array_equal(predict(again, x), predict(model, x))
