"""What the stages of subject "impl" pass around."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
#: impl.matcher.fuse_q4_embeddings, or something in its place: program -> (program, FusionReport).
Fuse = Callable[[Any], tuple[Any, Any]]
#: Values or bytes to packed bytes or blocks.
Pack = Callable[[Array], Array]
#: What the observer takes of a lookup: (fused, reason, detail).
Told = tuple[bool, str, str]


def telling(fuse: Fuse) -> Callable[[Any], tuple[Any, dict[str, Told]]]:
    """Turn fuse's report into what the observer takes: what is said of each lookup, by the source's node names."""

    def rewrite(program: Any) -> tuple[Any, dict[str, Told]]:
        fused_program, report = fuse(program)
        told = {refusal.node: (False, str(refusal.reason), refusal.detail) for refusal in report.refused}
        return fused_program, told | {fusion.node: (True, "", "") for fusion in report.fused}

    return rewrite
