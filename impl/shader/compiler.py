"""GLSL to SPIR-V: glslc once, spirv-val once, then from a content-hashed cache.

The cache is ``$Q4GSW_SPIRV_CACHE``, else ``$XDG_CACHE_HOME/q4gsw``, else ``~/.cache/q4gsw``. A file's
name holds the hash of everything that decides its content but the compiler, then the compiler's
version, and then the hash of its content: a file that is damaged does not count. With glslc installed only
its own files count; without it any compiler's file does, so a directory filled elsewhere serves a machine
that has no compiler. A cache that cannot be written, or that has no place, costs time only.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from impl.errors import ShaderCompileError, ShaderToolMissing
from impl.shader.float_modes import declare, declared

GLSL = Path(__file__).resolve().parent.parent.parent / "vulkan" / "glsl"
_TARGET = "vulkan1.1"


@dataclass(frozen=True)
class Shader:
    """A compiled module: SPIR-V bytes, their SHA-256 and the float modes that they declare.

    ``bindings``: the resources that the source declares where that is known; optimizing drops those that are not used.
    """

    name: str
    spirv: bytes
    sha256: str
    float_modes: tuple[str, ...]
    bindings: frozenset[int] = frozenset()


def compile_shader(source: Path, defines: tuple[str, ...] = (), float_modes: tuple[str, ...] = ()) -> Shader:
    """Compile one GLSL file, or take it from the cache.

    ``defines`` are "NAME" or "NAME=VALUE"; ``float_modes`` are declared on top of what the source
    declares ("RoundingModeRTE 32", see ``impl.shader.float_modes``).

    Raises:
        ShaderToolMissing: not in the cache, and glslc or spirv-val is not installed.
        ShaderCompileError: glslc or spirv-val refuses the shader.
        FileNotFoundError: there is no such source.
    """
    directory = cache_directory()
    return _compile(directory, source.name, source.read_bytes(), tuple(sorted(defines)), tuple(sorted(float_modes)))


def cache_directory() -> Path:
    """Where compiled modules are kept; for a user without a home directory a path that is not there."""
    if chosen := os.environ.get("Q4GSW_SPIRV_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q4gsw"
    except RuntimeError:
        return Path(os.devnull) / "q4gsw"


@functools.lru_cache(maxsize=256)
def _compile(
    directory: Path, name: str, source: bytes, defines: tuple[str, ...], float_modes: tuple[str, ...]
) -> Shader:
    stem = Path(name).stem
    recipe = json.dumps([hashlib.sha256(source).hexdigest(), defines, float_modes, _TARGET])
    key = f"{stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:20]}"
    spirv = _find(directory, key)
    if spirv is None:
        if float_modes:
            # The modes depend on the device, the plain module does not: one compiled elsewhere serves every device.
            spirv = declare(_compile(directory, name, source, defines, ()).spirv, float_modes)
        else:
            spirv = _build(name, source, defines)
        _validate(spirv, name, defines)
        with contextlib.suppress(OSError):
            _write_atomically(directory / f"{key}-{_compiler_tag()}-{_content(spirv)}.spv", spirv)
    return Shader(stem, spirv, hashlib.sha256(spirv).hexdigest(), declared(spirv))


def _find(directory: Path, key: str) -> bytes | None:
    """A module of the cache that is what it was when it was written."""
    compiler = _compiler_tag() if shutil.which("glslc") else "*"
    with contextlib.suppress(OSError):
        for path in sorted(directory.glob(f"{key}-{compiler}-*.spv")):
            spirv = path.read_bytes() if path.is_file() else b""
            if path.stem.endswith(f"-{_content(spirv)}"):
                return spirv
    return None


def _content(spirv: bytes) -> str:
    return hashlib.sha256(spirv).hexdigest()[:32]


@functools.cache
def _compiler_tag() -> str:
    if not shutil.which("glslc"):
        return "no-glslc"
    version = subprocess.run([_tool("glslc"), "--version"], capture_output=True, check=True).stdout
    return hashlib.sha256(version).hexdigest()[:12]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        package = {"glslc": "glslc", "spirv-val": "spirv-tools"}[name]
        raise ShaderToolMissing(
            f"{name} is not installed and the shader is not in {cache_directory()}: "
            f"apt-get install {package} (Debian), or set Q4GSW_SPIRV_CACHE to a directory that has it compiled"
        )
    return path


def _build(name: str, source: bytes, defines: tuple[str, ...]) -> bytes:
    glslc = _tool("glslc")
    with tempfile.TemporaryDirectory(prefix="q4gsw-") as scratch:
        glsl, module = Path(scratch) / name, Path(scratch) / "module.spv"
        glsl.write_bytes(source)
        flags = [f"-D{define}" for define in defines]
        stage = [] if glsl.suffix == ".comp" else ["-fshader-stage=compute"]
        _run([glslc, f"--target-env={_TARGET}", "-O", *stage, *flags, str(glsl), "-o", str(module)], name, defines)
        return module.read_bytes()


def _validate(spirv: bytes, name: str, defines: tuple[str, ...]) -> None:
    """Raise unless spirv-val passes the module.

    A machine without either tool runs modules that were validated where they were compiled; declaring
    modes on top of such a module is the one step that it cannot validate again.
    """
    if not (shutil.which("glslc") or shutil.which("spirv-val")):
        return
    with tempfile.NamedTemporaryFile(prefix="q4gsw-", suffix=".spv") as module:
        module.write(spirv)
        module.flush()
        _run([_tool("spirv-val"), "--target-env", _TARGET, module.name], name, defines)


def _run(command: list[str], name: str, defines: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stderr or done.stdout).strip()
        raise ShaderCompileError(
            f"{Path(command[0]).name} refuses {name} with {' '.join(defines) or 'no defines'}: {output}"
        )


def _write_atomically(path: Path, content: bytes) -> None:
    """Several processes may build the same shader at once: each renames a whole file into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
