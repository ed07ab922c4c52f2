"""What is wrong outside of the implementation under test, as one-line exceptions: the machine, a file, a request."""


class EnvironmentProblem(Exception):  # noqa: N818 - it names the state of the machine
    """The machine lacks something, such as a driver; the verdict is ERROR."""


class FeatureMissing(EnvironmentProblem):
    """The device lacks a feature that the case needs, which the message names; the verdict is UNSUPPORTED."""


class BadSubject(ValueError):  # noqa: N818 - it names what was given as the subject
    """What was given as the subject is none; the message says what is wrong with it in one line."""


class Untestable(Exception):  # noqa: N818 - it names the state of what was given
    """What was given as the subject cannot be tried at all, as a source tree that does not import (bisect: 125)."""


class BadFile(ValueError):  # noqa: N818 - it names the file's state
    """The bytes are not a readable model file: another format, truncated, hostile or of another version."""


class CannotRun(Exception):  # noqa: N818 - it names what the observer or the device would do
    """A readable program that cannot be executed here; the message names the method, delegate and operator."""


class DeviceWouldFail(CannotRun):
    """The program asks for something that the Vulkan runtime or its kernels do not serve."""


class RuntimeFailed(CannotRun):
    """A real runtime that neither loads nor runs a file, or whose answer is none; the message is its own."""


class UnservedGroupSize(DeviceWouldFail):
    """A group size for which the runtime's shaders read the wrong scales."""


def one_line(error: BaseException, limit: int = 240) -> str:
    """The first line of what an exception says, with its type, cut to ``limit`` characters."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
