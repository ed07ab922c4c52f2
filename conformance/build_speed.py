"""Spares torch.export a walk over every registered operator, a third of its time for programs as small as ours.

torch asks its dispatcher anew on every decomposition, since an operator may have been registered meanwhile.
Here the answer is kept for as long as the number of registrations stays the same.

Source: torch/_export/utils.py, ``_collect_all_valid_cia_ops``, torch 2.13.0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_known: dict[int, Any] = {}


@contextlib.contextmanager
def operators_listed_once() -> Iterator[None]:
    """While open, torch.export and its decompositions list composite operators once for each set of registrations.

    With a torch that is built otherwise it does nothing.
    """
    from torch._export import utils  # noqa: PLC0415 - loads with torch.export
    from torch.export import decomp_utils, exported_program  # noqa: PLC0415 - the same

    name = "_collect_all_valid_cia_ops"
    walk = getattr(utils, name, None)
    places = [m for m in (decomp_utils, exported_program) if walk is not None and getattr(m, name, None) is walk]

    def remembered() -> Any:
        count = len(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))  # noqa: SLF001 - as torch asks
        if count not in _known:
            _known[count] = walk()  # type: ignore[misc]  # not None: there are no places then
        return _known[count]

    for module in places:
        setattr(module, name, remembered)
    try:
        yield
    finally:
        for module in places:
            setattr(module, name, walk)
