"""Lines that torch, torchao and executorch say of themselves at every start; these, and no others, are kept out."""

import logging
import re
import warnings

#: By logger, how each line begins.
LINES = {
    "torchao": r"Failed to load \S*/torchao/_C_\w+\S*\.so: ",
    "torch.utils._pytree": r".* is an Enum subclass and is now natively supported by torch\.compile",
    # ExecuTorch's partitioner logs as the root does, and has that say everything, the line of our lowering too.
    "root": r"\[Vulkan Partitioner\] Due to |Found \d+ Vulkan|Operators included in this Vulkan|    \w+[.:]\w+",
    "impl.lowering": r"\S+: \d+ lookups fused, ",
}
WARNINGS = (
    r"(read_text|open_text|read_binary|open_binary) is deprecated",
    r".*torch.jit.script_method.* is deprecated",
    r".*isinstance.treespec, LeafSpec.* is deprecated",
    r"This API is experimental and subject to change without notice",
)


class _Known(logging.Filter):
    """Passes every record but those whose message begins with ``known``."""

    def __init__(self, known: str) -> None:
        super().__init__()
        self._known = re.compile(known)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is news."""
        return not self._known.match(record.getMessage())


def keep_out() -> None:
    """Filter ``LINES`` and ``WARNINGS`` in this process, from now on."""
    for name, known in LINES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Known) for one in logger.filters):
            logger.addFilter(_Known(known))
    for known in WARNINGS:
        warnings.filterwarnings("ignore", known)
