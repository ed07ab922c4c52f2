"""The command-line runner that plays kits: delegates on our Vulkan kernel, the rest on the wheel's CPU runtime."""

from pathlib import Path

import numpy as np

from conformance.files import write_whole
from conformance.kits.kit import read_file, read_kit, read_tensor
from conformance.pte.run import run_pte


def play(folder: Path, outputs: Path) -> list[str]:
    """Run one kit's model on its inputs and write ``output_N.bin`` into ``outputs``; returns the files' names."""
    kit = read_kit(folder)
    model = read_file(folder, kit.description.model)
    ran = run_pte(model, [read_tensor(folder, tensor).copy() for tensor in kit.description.inputs])
    outputs.mkdir(parents=True, exist_ok=True)
    names = []
    for position, array in enumerate(ran.outputs):
        name = f"output_{position}.bin"
        write_whole({outputs / name: np.ascontiguousarray(array).tobytes()})
        names.append(name)
    return names
