"""Several methods in one .pte: each gives eager's bits, and the table that they share is in the file once."""

import numpy as np
import torch
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

from conformance.pte.run import run_pte
from impl.lowering import lower_to_vulkan
from impl.packer import pack_linear_weight


class Lookup(torch.nn.Module):
    def __init__(self, embedding: torch.nn.Embedding, shift: float) -> None:
        super().__init__()
        self.embedding, self.shift = embedding, shift

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.embedding(indices) + self.shift


def test_two_methods_share_one_table() -> None:
    torch.manual_seed(0)
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    embedding = torch.nn.Embedding(16, 64)
    quantize_(holder := torch.nn.Sequential(embedding), config, lambda m, _: isinstance(m, torch.nn.Embedding))
    embedding = holder[0]
    asked = {"forward": torch.tensor([1, 5, 15]), "second": torch.tensor([[0, 2], [3, 4]])}
    modules = {"forward": Lookup(embedding, 0.0), "second": Lookup(embedding, 1.0)}
    exported = {name: torch.export.export(modules[name], (asked[name],)) for name in asked}
    data = bytes(lower_to_vulkan(exported).buffer)
    for name, indices in asked.items():
        (out,) = run_pte(data, [indices.numpy()], method=name).outputs
        assert np.array_equal(out, modules[name](indices).detach().numpy())
    packed = pack_linear_weight(embedding.weight.qdata).numpy().tobytes()
    assert data.count(packed) == 1
