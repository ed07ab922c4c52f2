"""A shader generator as small as can be, with the command line of ExecuTorch's: template x variants -> .spv files."""

import argparse
import subprocess
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("-i", nargs="+", type=Path)
parser.add_argument("-c")
parser.add_argument("-t", type=Path)
parser.add_argument("-o", type=Path)
parser.add_argument("--optimize", action="store_true")
options = parser.parse_args()
for listing in sorted(options.i[0].glob("*.yaml")):
    for line in listing.read_text().splitlines():
        name, *defines = line.lstrip("- ").split()
        flags = [f"-D{define}" for define in defines]
        glsl, module = listing.with_suffix(".glsl"), options.t / f"{name}.spv"
        command = [options.c, "--target-env=vulkan1.1", "-fshader-stage=compute", *flags, str(glsl), "-o", str(module)]
        subprocess.run(command, check=True)
