"""Spares torch.export two things that take half of its time for programs as small as ours; what it does stays the same.

Torch asks its dispatcher for every registered operator anew on every decomposition, since one may have been
registered meanwhile: here the answer is kept for as long as the same operators are registered. Then it
registers a kernel for each of them thousands of times, through a function that evaluates annotations on every call.

Source: torch/_export/utils.py, ``_collect_all_valid_cia_ops``; torch/_ops.py, ``OperatorBase.py_impl``, torch 2.13.0.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_known: dict[frozenset[str], Any] = {}


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
        names = frozenset(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))  # noqa: SLF001 - as torch asks
        if names not in _known:
            _known[names] = walk()  # type: ignore[misc]  # not None: there are no places then
        return _known[names]

    for module in places:
        setattr(module, name, remembered)
    try:
        with _plain_registrations():
            yield
    finally:
        for module in places:
            setattr(module, name, walk)


@contextlib.contextmanager
def _plain_registrations() -> Iterator[None]:
    """While open, a kernel for a dispatch key is registered without what ``py_impl`` does for other kinds of keys."""
    from torch._C import DispatchKey  # noqa: PLC0415 - with it
    from torch._ops import OperatorBase  # noqa: PLC0415 - loads with torch

    full = OperatorBase.py_impl

    def plain(self: Any, key: Any) -> Any:
        if type(key) is not DispatchKey or key == DispatchKey.Python:
            return full(self, key)

        def register(kernel):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - annotations are what it spares
            if key in self.py_kernels:
                return full(self, key)(kernel)  # it says what is wrong
            self.py_kernels[key] = kernel
            self._dispatch_cache.clear()
            return kernel

        return register

    OperatorBase.py_impl = plain
    try:
        yield
    finally:
        OperatorBase.py_impl = full
