"""The command-line runner that plays kits: delegates on our Vulkan kernel, the rest on the wheel's CPU runtime."""

from pathlib import Path

import numpy as np

from conformance.files import make_folder, write_whole
from conformance.harness.errors import BadFile
from conformance.kits.kit import read_file, read_kit, read_tensor
from conformance.pte.run import run_pte


def play(case_json: str, outputs: str) -> str:
    """Run the model of the kit that ``case_json`` describes on its inputs; return the names of the files written.

    The files are ``output_N.bin`` in ``outputs``. It is a task of ``conformance.harness.limited``: a model may be
    anything.

    Raises:
        BadFile: the kit, its model or an input is not what it should be.
    """
    try:
        kit = read_kit(Path(case_json).parent)
        model = read_file(kit.folder, kit.description.model)
        inputs = [read_tensor(kit.folder, tensor).copy() for tensor in kit.description.inputs]
    except ValueError as error:
        raise BadFile(str(error)) from error
    ran = run_pte(model, inputs)
    names = [f"output_{position}.bin" for position in range(len(ran.outputs))]
    folder = make_folder(Path(outputs))
    for name, array in zip(names, ran.outputs, strict=True):
        write_whole({folder / name: np.ascontiguousarray(array).tobytes()})
    return ", ".join(names)
