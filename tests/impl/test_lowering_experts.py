"""Tables that no 4-bit operator takes: of three axes, and inside a control-flow branch."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from conformance.pte.file import read_pte
from conformance.pte.run import run_pte
from impl.lowering import LoweringError, lower_with_report

DEQUANTIZE = torch.ops.torchao.dequantize_affine.default


@pytest.mark.parametrize("deep", [False, True])
def test_a_dequantize_inside_a_branch_is_named_with_its_line(*, deep: bool) -> None:
    """The CPU has no kernel of it; upstream says so of no node."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.ones(64, 64, dtype=torch.int8))
            self.register_buffer("s", torch.ones(64, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def inside(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
                return x * DEQUANTIZE(w, [1, 32], scale, None, torch.int8, -8, 7)

            def deeper(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
                return torch.cond(x.sum() > 1, inside, lambda x, *_: x * 2.0, (x, w, scale))

            chosen = deeper if deep else inside
            return torch.cond(x.sum() > 0, chosen, lambda x, *_: x - 1.0, (x, self.w, self.s))

    with pytest.raises(
        LoweringError, match=r"dequantize_affine.*outside the branch.*test_lowering_experts.py"
    ) as caught:
        lower_with_report(torch.export.export(Branch(), (torch.ones(64, 64),)))
    ((node, _),) = caught.value.nodes
    assert node.startswith("forward/submodule_0/" + "submodule_0/" * deep)


def test_int4_experts_are_right_and_their_growth_is_said() -> None:
    """Weights [experts, N, K], as a mixture of experts has them, in four ways: no 4-bit operator has three axes."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(3)
            self.register_buffer("w", torch.randint(-8, 8, (4, 32, 64), generator=generator, dtype=torch.int8))
            self.register_buffer("s", torch.rand(4, 32, 2, generator=generator))
            self.plain = torch.rand(1, 3, 64)  # a constant that two delegates read, as they do the experts

        def forward(self, x: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, ...]:
            w = DEQUANTIZE(self.w, [1, 1, 32], self.s, None, torch.int8, -8, 7)
            x = x + self.plain
            batched = torch.bmm(x.expand(4, -1, -1), w.transpose(1, 2))
            chosen = torch.bmm(x.transpose(0, 1), w[which].transpose(1, 2))
            first, *others = w.unbind()
            apart = functional.linear(x, first) + functional.linear(x, others[2])
            return batched, chosen, functional.linear(x, w[1]) + self.plain[..., :32], apart

    model, given = Experts(), (torch.rand(1, 3, 64), torch.tensor([0, 3, 2]))
    lowered = lower_with_report(torch.export.export(model, given))
    (growth,) = lowered.reports["forward"].folded.values()
    assert "(4, 32, 64) becomes float32, 5120 bytes quantized, 32768 in the file" in growth
    assert "test_lowering_experts.py" in growth
    outputs = run_pte(read_pte(lowered.manager.buffer), given).outputs
    for got, right in zip(outputs, model(*given), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), right, atol=1e-4, rtol=1e-5)
