"""ExecuTorch's own embedding and prepack shaders, compiled by its generator from a checkout of any version.

The checkout's ``gen_vulkan_spv.py`` runs as it is, on the checkout's templates, with the installed glslc.
What is bound to the result follows the checkout's host code, which each rule here names.

Source: docs/contract.md sections 7.1 and 7.2.
"""

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from impl.dispatch.variants import Variant
from impl.errors import ShaderCompileError, ShaderToolMissing
from impl.shader import float_modes
from impl.shader.compiler import Shader, cache_directory

_RUNTIME = Path("backends/vulkan/runtime")
_GLSL = _RUNTIME / "graph/ops/glsl"
_TEMPLATES = ("embedding_q4gsw", "pack_q4_linear_weight")
_TIMEOUT_S = 300
_BINDING = re.compile(r"\bbinding\s*=\s*(\d+)")


def shader_name(variant: Variant) -> str:
    """What ExecuTorch calls that variant: EmbeddingQ4gsw.cpp, add_embedding_q4gsw_node builds the name so."""
    parts = ["embedding_q4gsw"]
    if variant.scale_dtype == "float32":
        parts.append("float_scales")
    if variant.weight_layout == "block":
        parts += ["linear_weight", variant.weight_storage]
    return "_".join([*parts, variant.io_storage, {"float16": "half", "float32": "float"}[variant.output_dtype]])


def prepack_name(storage: str) -> str:
    """What ExecuTorch calls the prepack shader: QuantizedLinear.cpp, prepack_quantized_linear_weight."""
    return f"pack_q4_linear_weight_{storage}"


def executorch_shaders(checkout: Path) -> dict[str, Shader]:
    """Every variant of both shaders by ExecuTorch's names, from a checkout, or from a directory of its .spv files.

    Compiled modules are kept in the shader cache, under the hash of the templates.

    Raises:
        FileNotFoundError: the path is neither; names the first file that is missing.
        ShaderToolMissing: not in the cache, and glslc is not installed.
        ShaderCompileError: the generator failed or made nothing; carries the end of its output.
    """
    if any(checkout.glob("embedding_q4gsw*.spv")):
        return _load(checkout)
    sources = _sources(checkout)
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    key = f"executorch-3-{digest.hexdigest()[:20]}"
    with contextlib.suppress(OSError):
        for kept in sorted(cache_directory().glob(f"{key}-*")):
            if kept.name == f"{key}-{_content(kept)}":  # whole, and not damaged
                return _load(kept)
    with tempfile.TemporaryDirectory(prefix="q4gsw-") as scratch:
        modules = _generate(checkout / _RUNTIME / "gen_vulkan_spv.py", sources, Path(scratch))
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
            _keep(modules, cache_directory() / f"{key}-{_content(modules)}")
        return _load(modules)


def _content(folder: Path) -> str:
    """The hash of a folder's files."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + b"\0" + p.read_bytes() + b"\0" for p in files)).hexdigest()[:32]


def _keep(folder: Path, kept: Path) -> None:
    """Copy a folder into the cache, whole."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".new-", dir=kept.parent))
    try:
        shutil.copytree(folder, beside, dirs_exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        beside.replace(kept)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sources(checkout: Path) -> list[Path]:
    sources = [checkout / _RUNTIME / "gen_vulkan_spv.py"]
    sources += [checkout / _GLSL / f"{name}.{suffix}" for name in _TEMPLATES for suffix in ("glsl", "yaml")]
    for path in sources:
        if not path.is_file():
            raise FileNotFoundError(f"no ExecuTorch checkout at {checkout}: {path.relative_to(checkout)} is missing")
    return [*sources, *sorted((checkout / _GLSL).glob("*.glslh"))]


def _generate(generator: Path, sources: list[Path], scratch: Path) -> Path:
    """Run the generator in ``scratch`` and return the folder there that has its modules and their sources."""
    glslc = shutil.which("glslc")
    if glslc is None:
        raise ShaderToolMissing(
            f"glslc is not installed and {cache_directory()} holds no modules: apt-get install glslc (Debian)"
        )
    templates, written, listing, modules = (scratch / name for name in ("templates", "made", "listing", "modules"))
    for directory in (templates, written, listing, modules):
        directory.mkdir()
    for source in sources[1:]:
        shutil.copy(source, templates)
    words = ["-i", str(templates), "-c", glslc, "-t", str(written), "-o", str(listing), "--optimize"]
    command = [sys.executable, str(generator), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    made = sorted({*written.glob("*.spv"), *listing.glob("*.spv")})
    if done.returncode or not made:
        raise ShaderCompileError(f"{generator} made {len(made)} modules: {(done.stderr or done.stdout)[-600:].strip()}")
    for path in (*written.glob("*.glsl"), *listing.glob("*.glsl"), *made):
        shutil.copy(path, modules)
    return modules


def _load(directory: Path) -> dict[str, Shader]:
    shaders = {}
    for path in sorted(directory.glob("[!.]*.spv")):
        spirv = path.read_bytes()
        digest = hashlib.sha256(spirv).hexdigest()
        text = path.with_suffix(".glsl").read_text(encoding="utf-8") if path.with_suffix(".glsl").is_file() else ""
        declared = frozenset(int(number) for number in _BINDING.findall(text))
        shaders[path.stem] = Shader(path.stem, spirv, digest, float_modes.declared(spirv), declared)
    return shaders
