"""A pytest plugin for the suite (``-p tests.fakes.leaking``): at the end something raises where nobody catches it."""


class _Leak:
    def __del__(self) -> None:
        raise ResourceWarning("a pipe that nobody closed")


def pytest_sessionfinish() -> None:
    _Leak()
