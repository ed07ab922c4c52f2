"""Compiles every shader that the .yaml files name: a line "NAME: DEFINE DEFINE" each."""

import argparse
import subprocess
from pathlib import Path

parser = argparse.ArgumentParser()
for flag in "icto":
    parser.add_argument(f"-{flag}", required=True)
parser.add_argument("--optimize", action="store_true")
given = parser.parse_args()
for listing in sorted(Path(given.i).glob("*.yaml")):
    for line in listing.read_text().splitlines():
        name, _, defines = line.partition(":")
        if name and not name.startswith("#"):
            flags = [f"-D{word}" for word in defines.split()]
            source, module = listing.with_suffix(".glsl"), Path(given.t) / f"{name}.spv"
            subprocess.run([given.c, "-fshader-stage=compute", *flags, str(source), "-o", str(module)], check=True)
