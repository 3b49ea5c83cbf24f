"""ChemNet, the bioactivity network of the Fréchet ChemNet Distance, rebuilt from the weights inside `fcd_torch`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from reprogram.sources.base import Source
from reprogram.sources.codecs import TokenCodec

SYMBOLS = (
    "C", "N", "O", "H", "F", "Cl", "P", "B", "Br", "S", "I", "Si", "#", "(", ")", "+", "-", "1", "2", "3", "4", "5",
    "6", "7", "8", "=", "[", "]", "@", "c", "n", "o", "s", "X", ".",
)  # fmt: skip
LENGTH, FINGERPRINT = 350, 512
UNKNOWN, END, PAD = SYMBOLS.index("X"), SYMBOLS.index("."), len(SYMBOLS)


def tokenize(smiles: str) -> list[str]:
    """Characters, where one followed by r, i or l takes it along, up to the first dot.

    The dot closes the string ChemNet was trained on: what follows it in a mixture was never seen by the network.
    """
    smiles, tokens, start = smiles.split(".", 1)[0], [], 0
    while start < len(smiles):
        stop = start + (2 if smiles[start + 1 : start + 2] in ("r", "i", "l") else 1)
        tokens.append(smiles[start:stop])
        start = stop
    return tokens


class HalvingConvolution(nn.Module):
    """Bias-free convolution, kernel 4, stride 2, zero padding, SELU: (B, C, L) -> (B, C', ceil(L / 2))."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int):
        super().__init__()
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        total = max(kernel - (x.shape[2] % stride or stride), 0)
        # The reference splits the padding by the stride, not by two; for stride 2 that is the same.
        return torch.selu(self.convolution(pad(x, (total // stride, total - total // stride))))


class ChemNet(nn.Module):
    r"""Two convolutions and two LSTMs over a one-hot SMILES of 350 symbols, trained on some 6,000 bioassays.

    `last(LSTM_512(reverse(LSTM_128(reverse(conv(conv(x)))))))`. Shapes: `input_ids` (B, L) or `inputs_embeds`
    (B, L, 35) with L <= 350, `attention_mask` (B, L); returns (B, 512). An embedding row is one-hot / 35; padding is
    the zero row, and the network itself fills up to 350: the last LSTM reads the padding after the molecule, so that
    no shorter computation gives the same numbers.

    Reference: Preuer et al., "Fréchet ChemNet Distance", J. Chem. Inf. Model. 2018, arXiv:1803.09518; Mayr et al.,
    Chemical Science 2018. The test compares it with fcd_torch.
    Raises: ValueError for more than 350 tokens.
    """

    def __init__(self):
        super().__init__()
        one_hot = torch.cat([torch.eye(len(SYMBOLS)) / len(SYMBOLS), torch.zeros(1, len(SYMBOLS))])
        self.register_buffer("table", one_hot, persistent=False)
        self.convolutions = nn.Sequential(HalvingConvolution(35, 32, 4, 2), HalvingConvolution(32, 32, 4, 2))
        self.inner = nn.LSTM(32, 128, batch_first=True)
        self.outer = nn.LSTM(128, FINGERPRINT, batch_first=True)

    def reset_parameters(self) -> None:
        """The start Keras gave it: Glorot, orthogonal recurrences, forget gates open."""
        for block in self.convolutions:
            nn.init.xavier_uniform_(block.convolution.weight)
        for lstm in (self.inner, self.outer):
            nn.init.xavier_uniform_(lstm.weight_ih_l0)
            nn.init.zeros_(lstm.bias_ih_l0)
            nn.init.zeros_(lstm.bias_hh_l0)
            with torch.no_grad():
                for gate in lstm.weight_hh_l0.chunk(4):
                    nn.init.orthogonal_(gate)
                lstm.bias_ih_l0[lstm.hidden_size : 2 * lstm.hidden_size] = 1.0

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        x = self.table[input_ids] if inputs_embeds is None else inputs_embeds
        if x.shape[1] > LENGTH:
            raise ValueError(
                f"expected at most {LENGTH} tokens, got {x.shape[1]}; drop the input or choose another source"
            )
        if attention_mask is not None:
            x = x * attention_mask[..., None].to(x.dtype)
        x = self.convolutions(pad(x, (0, 0, 0, LENGTH - x.shape[1])).transpose(1, 2)).transpose(1, 2)
        x, _ = self.inner(x.flip(1))
        _, (last, _) = self.outer(x.flip(1))
        return last[0]


def from_file(path: Path) -> ChemNet:
    """Read the (layer, (state, arguments, extras)) list of `ChemNet_v0.13_pretrained.pt`."""
    layers = torch.load(path, map_location="cpu", weights_only=True)
    kinds = [(kind, extras.get("reverse"), extras.get("last")) for kind, (_, _, extras) in layers]
    expected = [("Conv1d", None, None)] * 2 + [("LSTM", True, False), ("LSTM", True, True)]
    if kinds != expected:
        raise ValueError(
            f"expected two convolutions and two reversed LSTMs in {path.name}, got {kinds}; reinstall fcd_torch"
        )
    model = ChemNet()
    parts = [*(block.convolution for block in model.convolutions), model.inner, model.outer]
    for part, (_, (state, _, _)) in zip(parts, layers, strict=True):
        part.load_state_dict(state)
    return model


def load(folder: Path, revision: str) -> Source:
    """ChemNet as a source, from the installed package folder of `fcd_torch`."""
    network = from_file(folder / "ChemNet_v0.13_pretrained.pt")
    vocabulary = {symbol: index for index, symbol in enumerate(SYMBOLS)}
    codec = TokenCodec(tokenize, vocabulary, unknown=UNKNOWN, pad=PAD, before=(), after=(END,), max_length=LENGTH)
    return Source(
        network, codec, name="chemnet", takes="tokens", width=FINGERPRINT, embedding=network.table, revision=revision,
        license="MIT",
    )  # fmt: skip
