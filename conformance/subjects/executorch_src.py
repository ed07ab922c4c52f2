"""Subject "executorch-src:PATH[@REVISION]": an ExecuTorch source tree, judged without building it.

EXPORT, MATCH, PACK, LOWER and RUN call the tree's Python, laid over the installed wheel, in the way that subject
"executorch" calls the wheel's. KERNEL and PREPACK dispatch the tree's own shaders, made by its own generator and
bound as its host code binds them; their tables are the reference's bytes, so that only the shader is
judged. A KERNEL case with a program goes end to end: the tree's matcher, its packer, its prepack shader.

Source: docs/contract.md section 7.2.
"""

import functools
from pathlib import Path

from conformance.case.case import Case, Dispatch, EndToEnd, Table
from conformance.harness.errors import Untestable
from conformance.harness.observation import Observation
from conformance.sources.tree import GENERATOR, GLSL, SourceTree, copy_of, source_tree
from conformance.subjects import executorch, overlay
from conformance.subjects.stages import answer, unlowerable

_VULKAN = "executorch.backends.vulkan"
#: What of the tree each stage calls.
_LOWERING = (f"{_VULKAN}.partitioner.vulkan_partitioner", f"{_VULKAN}.serialization.vulkan_graph_serialize")
_CALLED = {
    "LOWER": _LOWERING,
    "RUN": _LOWERING,
    "MATCH": (f"{_VULKAN}._passes.fuse_patterns", f"{_VULKAN}.patterns.pattern_registry"),
    "PACK": (f"{_VULKAN}.patterns.weight_packing_utils",),
}


class SubjectUnderTest:
    """One source tree."""

    def __init__(self, argument: str) -> None:
        """``argument`` is PATH or PATH@REVISION.

        Raises:
            ValueError: see ``conformance.sources.tree.source_tree``.
        """
        self._tree: SourceTree = source_tree(argument)
        self._copy: Path | None = None
        self._why = ""

    def supports(self, case: Case) -> str | None:
        """Return why the case does not apply to a source tree, or None."""
        if case.stage in {"LOWER", "RUN"}:
            return unlowerable(case)
        if case.stage == "PACK" and isinstance(case.question, Table) and case.question.layout == "flat":
            return "ExecuTorch has no function that packs flat bytes"
        if case.stage == "QUANTIZE":
            return "stage QUANTIZE is torchao's, not the source tree's"
        return None

    def run(self, case: Case) -> Observation:
        """Answer the case.

        Raises:
            Untestable: the tree lacks what the stage calls, or it cannot be imported; one line with the reason.
            Exception: whatever the tree raises.
        """
        folder = self._ready()
        question = case.question
        if isinstance(question, Dispatch) or (case.stage == "PREPACK" and isinstance(question, Table)):
            return self._on_device(question, folder)
        vulkan = () if case.stage == "EXPORT" else (_VULKAN,)
        for name in ("executorch.exir", *vulkan, *_CALLED.get(case.stage, ())):
            overlay.load(name)
        kernel = functools.partial(self._on_device, folder=folder)
        return answer(case, executorch.run_match, executorch.run_pack, kernel, executorch.lower)

    def _ready(self) -> Path:
        """The tree's copy, laid over the wheel at the first case."""
        if self._why:
            raise Untestable(self._why)
        if self._copy is None:
            try:
                self._copy = copy_of(self._tree)
                overlay.install(self._copy)
            except (ValueError, Untestable) as error:
                self._why = str(error)
                raise Untestable(self._why) from error
        return self._copy

    def _on_device(self, question: Table | Dispatch | EndToEnd, folder: Path) -> Observation:
        from conformance.subjects import executorch_src_kernel  # noqa: PLC0415 - Vulkan only where it is asked for

        if not (folder / GENERATOR).is_file() or not (folder / GLSL / "embedding_q4gsw.glsl").is_file():
            raise Untestable(f"{self._tree}: no {GENERATOR} or {GLSL}/embedding_q4gsw.glsl: no shader to judge")
        shaders = executorch_src_kernel.shaders_of(folder)
        if isinstance(question, Table):
            return executorch_src_kernel.run_prepack_case(question, shaders)
        return executorch_src_kernel.run_kernel_case(question, shaders, folder)
