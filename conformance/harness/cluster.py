"""Tasks on a Dask cluster: each is answered once, whatever becomes of workers and scheduler meanwhile.

Needs Dask's ``distributed``, which is an optional dependency. Workers need this project in the same version.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from conformance.harness.errors import EnvironmentProblem, one_line

#: How long a scheduler may be away.
PATIENCE_S = 120.0
_RETRIES = 5
_POLL_S = 0.2

Call = tuple[Callable[..., Any], tuple[Any, ...]]
#: Whether an answer of a worker counts: worker and answer -> why not, or "".
Doubt = Callable[[str, Any], str]


def answers(
    address: str,
    work: Mapping[str, Call],
    *,
    resource: str = "",
    doubt: Doubt | None = None,
    apart: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, Any]]:
    """Yield key, worker and answer of every call of ``work``, once each, as they come.

    A worker that dies loses nothing: its task runs again elsewhere. One whose answer is in doubt leaves the cluster,
    and the task runs again. A scheduler that restarts gets what is left. ``resource``: what a task takes one of.
    ``apart``: the worker that is not to run a key; the key is left out where there is no other.

    Raises:
        EnvironmentProblem: no distributed; no scheduler for ``PATIENCE_S``; a task that kills its workers, or raises.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - optional
    except ImportError as error:
        raise EnvironmentProblem("--cluster needs Dask: pip install distributed==2026.8.0") from error
    left, seen, trouble = dict(work), time.monotonic(), ""
    while left:
        if trouble and time.monotonic() - seen > PATIENCE_S:
            raise EnvironmentProblem(f"no Dask scheduler at {address}: {trouble}")
        try:
            with Client(address, timeout=5, set_as_default=False) as client:
                for answer in _round(client, left, resource, doubt, apart or {}):
                    seen, trouble = time.monotonic(), ""
                    yield answer
        except (OSError, _Gone) as error:
            trouble = one_line(error)
            time.sleep(_POLL_S)


class _Gone(Exception):  # noqa: N818 - names what the scheduler is
    """The scheduler has forgotten the tasks, or does not answer."""


def _round(
    client: Any, left: dict[str, Call], resource: str, doubt: Doubt | None, apart: Mapping[str, str]
) -> Iterator[tuple[str, str, Any]]:
    """Submit what is left and yield answers until all are there; _Gone where the scheduler is."""
    stamp = f"{time.time():.3f}"
    needs: dict[str, Any] = {"resources": {resource: 1}} if resource else {}
    there = set(client.scheduler_info(n_workers=-1)["workers"])
    for key in [key for key, worker in apart.items() if there <= {worker}]:
        left.pop(key, None)

    def submit(key: str, attempt: int) -> Any:
        call, arguments = left[key]
        name = f"q4gsw-{stamp}-{attempt}-{key}"
        if key in apart:
            needs["workers"] = sorted(there - {apart[key]})
        return client.submit(_answer, call, arguments, key=name, pure=False, retries=_RETRIES, **needs)

    waiting = {key: submit(key, 0) for key in left}
    while waiting:
        if client.status != "running":
            raise _Gone(f"the client is {client.status}")
        done = [key for key, future in waiting.items() if future.status != "pending"]
        if not done:
            time.sleep(_POLL_S / 10)
        for key in done:
            worker, answer = _result(waiting.pop(key))
            if doubt and (why := doubt(worker, answer)):
                client.log_event("q4gsw", f"{worker} is left out: {why}")
                with contextlib.suppress(Exception):  # it may have gone by itself
                    client.retire_workers([worker], close_workers=True, remove=True)
                waiting[key] = submit(key, int(time.monotonic() * 1000))
                continue
            del left[key]
            yield key, worker, answer


def _result(future: Any) -> tuple[str, Any]:
    """Worker and answer of a task that is over."""
    if future.status in {"cancelled", "lost"}:
        raise _Gone(f"its tasks are {future.status}")
    if future.status == "error":
        raise EnvironmentProblem(f"on a Dask worker: {one_line(future.exception(timeout=5))}")
    worker, answer = future.result(timeout=30)
    return str(worker), answer


def _answer(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Run on a worker: its address, and what the call returns."""
    from distributed import get_worker  # noqa: PLC0415 - optional

    return str(get_worker().address), call(*arguments)


def everywhere(address: str, call: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return what ``call`` returns on each worker there is now, by its address."""
    try:
        from distributed import Client  # noqa: PLC0415 - optional

        with Client(address, timeout=PATIENCE_S, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=PATIENCE_S)
            return dict(client.run(call, *arguments))
    except ImportError as error:
        raise EnvironmentProblem("--cluster needs Dask: pip install distributed==2026.8.0") from error
    except OSError as error:
        raise EnvironmentProblem(f"no Dask scheduler or worker at {address}: {one_line(error)}") from error
