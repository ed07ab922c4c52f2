"""An ExecuTorch runtime with a Vulkan backend that is judged as it is: a shared library, or a runner's command.

Source: docs/runtime.md.
"""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

#: Who may turn programs into files for it.
LOWERINGS = ("impl", "executorch")


@dataclass(frozen=True)
class RuntimeSource:
    """``words`` are a shared library's path, or a command; ``lowering`` names who writes the files that it runs."""

    words: tuple[str, ...]
    lowering: str = LOWERINGS[0]

    @property
    def library(self) -> bool:
        """Whether it is a shared library, which the wheel's own runtime loads."""
        return len(self.words) == 1 and ".so" in Path(self.words[0]).suffixes

    def __str__(self) -> str:
        """Return the argument that names this runtime, its paths absolute."""
        return shlex.join(self.words) + (f"@{self.lowering}" if self.lowering != LOWERINGS[0] else "")


def runtime_source(argument: str) -> RuntimeSource:
    """Return the runtime that ``PATH[@LOWERING]`` means; PATH may be a command with words of its own.

    Raises:
        ValueError: no such file or command; says what to give.
    """
    command, at, lowering = argument.rpartition("@")
    if not at or lowering not in LOWERINGS:
        command, lowering = argument, LOWERINGS[0]
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"executorch-runtime: {command!r} is no command ({error})") from error
    whole = tuple(str(Path(word).absolute()) if Path(word).is_file() else word for word in words)
    source = RuntimeSource((*filter(None, [shutil.which(w) or w for w in whole[:1]]), *whole[1:]), lowering)
    if not words or not (Path(source.words[0]).is_file() if source.library else shutil.which(source.words[0])):
        raise ValueError(
            f"executorch-runtime: no library or command {command!r}; give the shared library that registers "
            "VulkanBackend, or an executable runner (docs/runtime.md)"
        )
    return source
