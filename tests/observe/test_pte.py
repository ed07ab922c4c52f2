"""The observer of .pte files on a real one: it runs right, and every bug planted into the file is found and located."""

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkMemoryLayout, VkStorageType
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import Buffer

from conformance.audit.audit import audit
from conformance.case.case import Case
from conformance.case.catalogue import load
from conformance.harness.errors import CannotRun, DeviceWouldFail
from conformance.harness.observation import File, Place, decode, encode
from conformance.judging.judge import judge
from conformance.observe.lowered import observe_file, observe_run, places, whole_tables
from conformance.program.build import BuiltProgram, build
from conformance.pte import device, lookup
from conformance.pte.file import PteFile, read_pte
from conformance.pte.run import run_pte
from conformance.results.verdict import FAIL, PASS, Verdict
from impl.errors import ValidationFailed
from impl.kernel import embedding_shader
from impl.lowering import lower_to_vulkan
from reference.program.evaluate import evaluate
from reference.program.spec import ProgramSpec
from reference.program.values import tensor_values
from reference.table.layouts import pack_flat, pack_linear_weight
from tests.planted.glsl import SHADER

CASES = {c.id: c for c in load()}


def case_named(name: str) -> Case:
    return CASES[name]


def spec_of(name: str) -> ProgramSpec:
    spec = CASES[name].program
    assert spec is not None
    return spec


@functools.cache
def built(name: str) -> BuiltProgram:
    return build(spec_of(name))


@functools.cache
def lowered(name: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        return bytes(lower_to_vulkan(built(name).exported).buffer)


MIXED = "run/mixed-group-sizes"  # one delegated and one refused lookup of one table
PLAIN = "lower/control"
PLAIN_RUN = "run/control"


def judged_run(name: str, data: bytes) -> Verdict:
    return judge(case_named(name), decode(encode(observe_run(built(name), read_pte(data)))), "planted")


def judged_lower(name: str, data: bytes) -> Verdict:
    file = read_pte(data)
    observation = File(file.digest, observe_file(built(name), file))
    assert decode(encode(observation)) == observation
    whole = replace(observation, read=whole_tables(built(name), file))
    return judge(case_named(name), decode(encode(whole)), "planted")


def table(name: str) -> tuple[str, Any]:
    """The weight tensor that the case's first lookup reads: its name and values."""
    spec = spec_of(name)
    step = spec.dequantize(spec.lookups()[0].table)  # type: ignore[union-attr] # both cases are of torchao's dialect
    return step.weight, tensor_values(spec)[step.weight]


def with_constant(data: bytes, extra: bytes) -> bytes:
    """The file with one more constant that nothing reads."""
    content = deserialize_pte_binary(data)
    content.program.constant_buffer.append(Buffer(storage=extra))
    return bytes(serialize_pte_binary(content, extract_delegate_segments=True))


def edited(name: str, edit: Callable[[Any], None]) -> PteFile:
    """The parsed file with its first delegate's graph edited."""
    file = copy.deepcopy(read_pte(lowered(name)))
    edit(file.methods[0].delegates[0].graph)
    return file


class TestTheGoodFile:
    def test_a_mixed_program_computes_the_references_bits(self) -> None:
        ran = run_pte(lowered(MIXED), built(MIXED).inputs)
        expected = evaluate(spec_of(MIXED))
        for step, position in built(MIXED).outputs.items():
            assert ran.outputs[position].dtype == expected[step].dtype
            np.testing.assert_array_equal(ran.outputs[position], expected[step])
        assert [lookup.io_storage for lookup in ran.lookups] == ["texture3d"]

    def test_one_lookup_is_delegated_and_the_other_on_the_cpu(self) -> None:
        found = places(built(MIXED), read_pte(lowered(MIXED)))
        assert found["lookup0"].operator == "et_vk.embedding_q4gsw.default"
        assert (found["lookup1"].place, found["lookup1"].operator.partition(".")[0]) == ("cpu", "quantized_decomposed")

    def test_judge_and_audit_find_nothing(self) -> None:
        assert judged_run(MIXED, lowered(MIXED)).outcome == PASS
        assert judged_lower(PLAIN, lowered(PLAIN)).outcome == PASS
        found = audit(read_pte(lowered(PLAIN)))
        assert found.problems == ()
        assert [(t.rows, t.columns, t.group_size, t.stored) for t in found.tables] == [(9, 64, 32, 1)]

    def test_buffers_are_honoured_where_the_graph_asks_for_them(self) -> None:
        def to_buffers(graph: Any) -> None:
            for value in (*graph.input_ids, *graph.output_ids):
                graph.values[value].value.storage_type = VkStorageType.BUFFER

        ran = run_pte(edited(PLAIN, to_buffers), built(PLAIN).inputs)
        assert "buffer" in ran.lookups[0].io_storage
        np.testing.assert_array_equal(ran.outputs[0], evaluate(spec_of(PLAIN))["lookup0"])


class TestTheDevice:
    def test_a_runs_shader_that_breaks_vulkans_rules_is_caught_by_validate(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Planted: push constants beyond the range that is pushed. The values stay right; only the layer sees it."""
        text = SHADER.read_text()
        for old, new in (
            ("  int is_linear_weight;", "  int is_linear_weight;\n  int beyond;"),
            ("void main() {", "void main() {\n  if (beyond == 0x7654321) return;"),
        ):
            assert text.count(old) == 1
            text = text.replace(old, new)
        source = tmp_path / "beyond.comp"
        source.write_text(text)
        monkeypatch.setattr(device, "_open", [])
        with monkeypatch.context() as planted:
            planted.setattr(lookup, "embedding_shader", lambda info, variant: embedding_shader(info, variant, source))
            assert judged_run(PLAIN_RUN, lowered(PLAIN_RUN)).outcome == PASS
        device.open_device().close()
        monkeypatch.setattr(device, "_open", [])
        monkeypatch.setenv("Q4GSW_VALIDATE", "1")
        assert judged_run(PLAIN_RUN, lowered(PLAIN_RUN)).outcome == PASS
        monkeypatch.setattr(lookup, "embedding_shader", lambda info, variant: embedding_shader(info, variant, source))
        with pytest.raises(ValidationFailed, match="Push constant"):
            judged_run(PLAIN_RUN, lowered(PLAIN_RUN))


class TestPlanted:
    @pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 33), (2, 95)])
    def test_one_flipped_nibble_is_located(self, row: int, column: int) -> None:
        """Row ``indices[row]``, one column: the judge names that element and no other."""
        _, values = table(MIXED)
        indices = tensor_values(spec_of(MIXED))["indices0"]
        packed = pack_linear_weight(values)
        data = bytearray(lowered(MIXED))
        at = data.index(packed.tobytes())
        data[at + int(indices[row]) * packed.shape[1] + column // 2] ^= 0x10 if column % 2 else 0x01
        verdict = judged_run(MIXED, bytes(data))
        assert (verdict.outcome, verdict.signature) == (FAIL, "RUN/array/values")
        assert verdict.mismatch is not None
        first = int(np.flatnonzero(indices == indices[row])[0])
        assert (verdict.mismatch["name"], list(verdict.mismatch["index"])) == ("lookup0", [first, column])
        assert verdict.mismatch["wrong"] == int((indices == indices[row]).sum())

    @pytest.mark.parametrize(
        ("form", "signature", "kind"),
        [
            ("float", "LOWER/decision/float_copy", "float_copy"),
            ("packed", "LOWER/decision/table_duplicated", "duplicate_table"),
            ("flat", "LOWER/decision/table_duplicated", ""),
            ("int8", "LOWER/decision/original", "int8_original"),
        ],
    )
    def test_a_second_copy_of_the_table_is_found(self, form: str, signature: str, kind: str) -> None:
        _, values = table(PLAIN)
        scales = np.repeat(tensor_values(spec_of(PLAIN))["emb.scale"], 32, axis=1)
        extra = {
            "float": values * scales,
            "packed": pack_linear_weight(values),
            "flat": pack_flat(values),
            "int8": values,
        }[form].tobytes()
        data = with_constant(lowered(PLAIN), extra)
        assert judged_lower(PLAIN, data).signature == signature
        kinds = {p.kind for p in audit(read_pte(data)).problems}
        assert kinds == ({kind} if kind else set())  # bytes that no operator reads as a table are only the judge's

    def test_an_operator_that_no_runtime_registers(self) -> None:
        data = lowered(PLAIN).replace(b"et_vk.embedding_q4gsw.default", b"torchao.dequantize_aff.defaul")
        found = audit(read_pte(data))
        assert found.fails()
        assert {p.kind for p in found.problems} == {"unregistered_operator"}
        with pytest.raises(DeviceWouldFail, match="registers no operator torchao"):
            run_pte(data, built(PLAIN).inputs)

    def test_an_operator_without_eager_implementation_is_named(self) -> None:
        def rename(graph: Any) -> None:
            graph.chain[0].name = "sdpa_with_kv_cache.default"

        with pytest.raises(CannotRun, match="no eager implementation of sdpa_with_kv_cache"):
            run_pte(edited(PLAIN, rename), built(PLAIN).inputs)

    def test_an_output_dtype_that_is_not_the_programs(self) -> None:
        content = deserialize_pte_binary(lowered(PLAIN))
        plan = content.program.execution_plan[0]
        plan.values[plan.outputs[0]].val.scalar_type = ScalarType.INT
        data = bytes(serialize_pte_binary(content, extract_delegate_segments=True))
        found = audit(read_pte(data))
        assert [(p.severity, p.kind) for p in found.problems] == [("fails", "dtype")]
        with pytest.raises(DeviceWouldFail, match=r"output 0 is torch\.float32"):
            run_pte(data, built(PLAIN).inputs)

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("storage_type", VkStorageType.TEXTURE_2D, "texture2d"),
            ("storage_type", VkStorageType.BUFFER, "indices in a texture3d"),
            ("memory_layout", VkMemoryLayout.TENSOR_CHANNELS_PACKED, "CHANNELS_PACKED"),
        ],
    )
    def test_a_storage_that_no_shader_serves(self, field: str, value: Any, says: str) -> None:
        def edit(graph: Any) -> None:
            setattr(graph.values[graph.output_ids[0]].value, field, value)

        file = edited(PLAIN, edit)
        kinds = {p.kind for p in audit(file).problems}
        assert "unservable" in kinds
        assert kinds <= {"unservable", "storage"}
        with pytest.raises(DeviceWouldFail, match=says):
            run_pte(file, built(PLAIN).inputs)

    def test_a_group_size_that_the_shader_cannot_read(self) -> None:
        def edit(graph: Any) -> None:
            call = graph.chain[0]
            graph.values[call.args[2]].value.int_val = 6

        found = audit(edited(PLAIN, edit))
        assert [(p.severity, p.kind) for p in found.problems] == [("wrong", "group_size")]

    def test_a_lookup_that_left_the_delegate(self) -> None:
        file = read_pte(lowered(PLAIN))
        content = observe_file(built(PLAIN), file)
        moved = replace(content, places={"lookup0": Place("cpu", "quantized_decomposed.embedding_byte.out")})
        verdict = judge(case_named(PLAIN), File(file.digest, moved), "planted")
        assert verdict.signature == "LOWER/decision/missed_delegation"


def test_a_norm_of_rows_that_the_cpu_kernel_refuses_is_judged_and_a_wrong_one_fails() -> None:
    """The norm in bfloat16 has no bound: what is compared with it runs on the CPU, where the kernel would abort."""
    name = "run/consumer/packed-zero-points-of-another-type"
    observation = observe_run(built(name), read_pte(lowered(name)))
    assert judge(case_named(name), observation, "planted").outcome == PASS
    output = next(output for output in observation.outputs if output != "lookup0")
    bits = observation.outputs[output].copy()
    bits.view(np.uint16)[0, 0] ^= 1
    changed = replace(observation, outputs={**observation.outputs, output: bits})
    assert judge(case_named(name), changed, "planted").signature == "RUN/array/values"


class TestRefusals:
    def test_an_index_outside_the_table(self) -> None:
        with pytest.raises(CannotRun, match=r"indices\[2\] is 9"):
            run_pte(lowered(PLAIN), [np.array([0, 1, 9, 0, 0])])

    def test_inputs_of_another_dtype_shape_or_number(self) -> None:
        for inputs in ([np.zeros(5, np.int32)], [np.zeros(6, np.int64)], []):
            with pytest.raises(CannotRun, match="input"):
                run_pte(lowered(PLAIN), inputs)

    def test_a_method_that_is_not_there(self) -> None:
        with pytest.raises(KeyError, match="the program has forward"):
            run_pte(lowered(PLAIN), [], method="backward")

    def test_a_graph_with_wrong_bits_is_not_a_pass(self) -> None:
        """The judge itself: a source output that differs is a mismatch, not a tolerance."""
        observation = observe_run(built(PLAIN), read_pte(lowered(PLAIN)))
        outputs = {"lookup0": np.nextafter(observation.outputs["lookup0"], np.float32(9))}
        changed = replace(observation, outputs=outputs)
        assert judge(case_named(PLAIN), changed, "planted").outcome != PASS
        run_case = case_named("run/control")
        assert judge(run_case, changed, "planted").signature == "RUN/array/values"
