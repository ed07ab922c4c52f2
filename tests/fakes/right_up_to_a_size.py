"""Fake packers that are right up to a size: what bisection over sizes has to find."""

from conformance import Arrays, Case, EnvironmentProblem, Observation, Table, table_values
from reference.table.layouts import pack_linear_weight


class RightBelow24Rows:
    """Swaps the nibbles of tables of 24 rows and more."""

    def supports(self, case: Case) -> str | None:
        return None

    def is_wrong(self, rows: int, columns: int) -> bool:
        return rows >= 24

    def run(self, case: Case) -> Observation:
        assert isinstance(case.question, Table)
        packed = pack_linear_weight(table_values(case.question))
        wrong = self.is_wrong(case.question.vocab_size, case.question.embed_dim)
        return Arrays({"packed": packed >> 4 | packed << 4 if wrong else packed})


class RightAbove192Columns(RightBelow24Rows):
    def is_wrong(self, rows: int, columns: int) -> bool:
        return columns <= 192


class WrongWhereOdd(RightBelow24Rows):
    def is_wrong(self, rows: int, columns: int) -> bool:
        return rows % 2 == 1


class AnotherFailureInBetween(RightBelow24Rows):
    def run(self, case: Case) -> Observation:
        assert isinstance(case.question, Table)
        if 10 < case.question.vocab_size < 24:
            raise RuntimeError("no memory")
        return super().run(case)


class WrongEveryThirdTime(RightBelow24Rows):
    """Flaky: its answers depend on how often it was asked."""

    asked = 0

    def is_wrong(self, rows: int, columns: int) -> bool:
        self.asked += 1
        return self.asked % 3 == 0


class LacksADriver(RightBelow24Rows):
    def run(self, case: Case) -> Observation:
        raise EnvironmentProblem("apt-get install some-driver")
