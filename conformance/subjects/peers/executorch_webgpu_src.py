"""Subject "executorch-webgpu-src:PATH[@REVISION]": a source tree's WGSL of embedding_q4gsw, run through PyPI's wgpu.

The shader runs unmodified, bound as the tree's host code (EmbeddingQ4gsw.cpp) binds it, on the Vulkan device that
$Q4GSW_DEVICE names.
"""

import functools
import os
from typing import Any

import numpy as np
import wgpu

from conformance.harness.errors import EnvironmentProblem, Untestable
from conformance.harness.observation import Facts
from conformance.sources import git
from conformance.sources.tree import source_tree
from conformance.subjects.peers.peer import Array, Dialect, Peer
from impl.gpu.device import driver_of
from reference.table.layouts import pack_flat

SHADER = "backends/webgpu/runtime/ops/embedding_q4gsw/embedding_q4gsw.wgsl"
_COLUMNS, _LOCAL = 32, 64


class SubjectUnderTest(Peer):
    """Flat weights, float32 scales and rows; WGSL declares no float modes."""

    dialect = Dialect("wgpu", (("float32", "float32"),), facts=Facts((), precise=True), multiple=_COLUMNS)

    def __init__(self, argument: str) -> None:
        """``argument`` is PATH or PATH@REVISION.

        Raises:
            ValueError: see ``conformance.sources.tree.source_tree``.
        """
        tree = source_tree(argument)
        file = tree.path / SHADER
        if tree.commit:
            source = git.text(tree.path, "show", f"{tree.commit}:{SHADER}")
        elif file.is_file():
            source = file.read_text(encoding="utf-8")
        else:
            raise Untestable(f"{tree}: {SHADER} is missing")
        self._source = source

    @functools.cached_property
    def _adapter(self) -> Any:
        """The device of $Q4GSW_DEVICE, opened by the first question: a proof asks for variants before it names one."""
        name = os.environ.get("Q4GSW_DEVICE", "")
        with driver_of(name):
            adapters = [a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["backend_type"] == "Vulkan"]
        chosen = [a for a in adapters if name.lower() in a.info["device"].lower()]
        if not chosen:
            there = ", ".join(a.info["device"] for a in adapters) or "none"
            raise EnvironmentProblem(f"no Vulkan device {name!r} for wgpu; there is {there}")
        return chosen[0]

    @functools.cached_property
    def _device(self) -> Any:
        return self._adapter.request_device_sync()

    @functools.cached_property
    def _pipeline(self) -> Any:
        module = self._device.create_shader_module(code=self._source)
        stage = {"module": module, "entry_point": "main", "constants": {"wg_size": _LOCAL}}
        return self._device.create_compute_pipeline(layout="auto", compute=stage)

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:
        """See ``Peer.lookup``."""
        (_rows, columns), count = values.shape, indices.size
        if not count:
            return np.empty((0, columns), output_dtype)
        blocks = count * (columns // _COLUMNS)
        sizes = (columns, columns // _COLUMNS, count, group_size, columns // group_size, columns // 2, blocks, 0)
        packed = pack_flat(values).reshape(-1)
        inputs = (indices.astype(np.int32), packed, scales)
        usage = wgpu.BufferUsage.STORAGE
        out = self._device.create_buffer(size=4 * count * columns, usage=usage | wgpu.BufferUsage.COPY_SRC)
        bound = [out, *(self._buffer(array, usage) for array in inputs)]
        bound.append(self._buffer(np.array(sizes, np.uint32), wgpu.BufferUsage.UNIFORM))
        entries = [
            {"binding": place, "resource": {"buffer": buffer, "offset": 0, "size": buffer.size}}
            for place, buffer in enumerate(bound)
        ]
        group = self._device.create_bind_group(layout=self._pipeline.get_bind_group_layout(0), entries=entries)
        encoder = self._device.create_command_encoder()
        work = encoder.begin_compute_pass()
        work.set_pipeline(self._pipeline)
        work.set_bind_group(0, group)
        work.dispatch_workgroups(-(-blocks // _LOCAL))
        work.end()
        self._device.queue.submit([encoder.finish()])
        return np.frombuffer(self._device.queue.read_buffer(out), output_dtype).reshape(count, columns)

    def _buffer(self, array: Array, usage: int) -> Any:
        return self._device.create_buffer_with_data(data=np.ascontiguousarray(array), usage=usage)

    def facts(self) -> Facts:
        """Return also the device that wgpu found."""
        own = super().facts()
        return Facts(own.execution_modes, own.precise, device=str(self._adapter.info["device"]), driver=self.version())
