"""Time and memory of impl.packer and of upstream's packer, in one process.

    python -m bench.packer_bench [--vocab-size 128256] [--embed-dim 2048] [--repeat 5] [--json FILE]

Prints a table; exits 1 when packing the linear-weight layout is not at least 5 times as fast as
upstream's ``pack_4bit_weight_tensor`` (both check the range of every value), or when any of ours
holds more than its output and 16 MiB.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from executorch.backends.vulkan.patterns.weight_packing_utils import pack_4bit_weight_tensor

from bench.common import parser, write_json
from impl.packer import flat_to_linear_weight, pack_blocks, pack_flat, pack_linear_weight

MIB = 1 << 20
REQUIRED_SPEEDUP = 5.0
ALLOWED_EXTRA_MIB = 16.0


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write JSON; 0 when both bounds hold."""
    command = parser("packer_bench", __doc__)
    command.add_argument("--vocab-size", type=int, default=128256)
    command.add_argument("--embed-dim", type=int, default=2048)
    command.add_argument("--repeat", type=int, default=5)
    options = command.parse_args(argv)
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-8, 8, (options.vocab_size, options.embed_dim), generator=generator, dtype=torch.int8)
    rows = measure(values, options.repeat)
    by_name = {row["what"]: row for row in rows}
    speedup = by_name["upstream pack_4bit_weight_tensor"]["seconds"] / by_name["pack_linear_weight"]["seconds"]
    print(f"V = {options.vocab_size}, D = {options.embed_dim}, best of {options.repeat}, torch {torch.__version__}")
    print(f"{'what':36} {'seconds':>9} {'GB/s in':>9} {'output MiB':>11} {'extra MiB':>10}")
    for row in rows:
        print(
            f"{row['what']:36} {row['seconds']:9.4f} {row['gb_per_s']:9.2f} "
            f"{row['output_mib']:11.1f} {row['extra_mib']:10.1f}"
        )
    print(f"pack_linear_weight is {speedup:.1f} times as fast as upstream (required: {REQUIRED_SPEEDUP})")
    write_json(options.json, {"speedup": speedup, "rows": rows})
    heavy = [row["what"] for row in rows if row["ours"] and row["extra_mib"] > ALLOWED_EXTRA_MIB]
    for what in heavy:
        print(f"{what} holds more than its output and {ALLOWED_EXTRA_MIB} MiB", file=sys.stderr)
    return 1 if heavy or speedup < REQUIRED_SPEEDUP else 0


def measure(values: torch.Tensor, repeat: int) -> list[dict[str, Any]]:
    """One row for each packer: seconds, rate, output and what it held beyond the output."""
    packed = pack_linear_weight(values)
    runs: list[tuple[str, bool, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = [
        ("pack_flat", True, values, pack_flat),
        ("pack_linear_weight", True, values, pack_linear_weight),
        ("flat_to_linear_weight", True, packed, flat_to_linear_weight),
        ("pack_blocks", True, packed, pack_blocks),
        ("upstream pack_4bit_weight_tensor", False, values, pack_4bit_weight_tensor),
    ]
    rows = []
    for what, ours, table, pack in runs:
        seconds, peak, size = [], 0, 0
        for _ in range(repeat):
            before = reset_peak()
            start = time.perf_counter()
            result = pack(table)
            seconds.append(time.perf_counter() - start)
            size = result.numel() * result.element_size()
            peak = max(peak, memory("VmHWM") - before)
            del result
        rows.append(
            {
                "what": what,
                "ours": ours,
                "seconds": min(seconds),
                "gb_per_s": table.numel() / min(seconds) / 1e9,
                "output_mib": size / MIB,
                "extra_mib": max(0, peak - size) / MIB,
            }
        )
    return rows


def reset_peak() -> int:
    """Make the kernel's peak of resident memory start at what is resident now; returns that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
