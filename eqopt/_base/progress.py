"""Progress bars: tqdm's or rich's where installed, else a line of text."""

import abc
import importlib.util
import sys
import time
from typing import Any


class AbstractProgress(abc.ABC):
    """Shows how far a loop has come; pass one as `progress` to [`eqopt.fit`][]."""

    @abc.abstractmethod
    def start(self, total: int | None) -> None:
        """Is called once at the start, with the number of steps if it is known."""

    @abc.abstractmethod
    def update(self, steps: int, message: str) -> None:
        """Is called from time to time with the number of steps taken so far and a message."""

    @abc.abstractmethod
    def close(self) -> None:
        """Is called once at the end, also after an error."""


class NoProgress(AbstractProgress):
    """Shows nothing."""

    def start(self, total: int | None) -> None:
        pass

    def update(self, steps: int, message: str) -> None:
        pass

    def close(self) -> None:
        pass


class TextProgress(AbstractProgress):
    """Prints a line of text every few seconds.

    **Arguments:**

    - `interval`: seconds between lines.
    """

    def __init__(self, interval: float = 2.0) -> None:
        self.interval = interval
        self.total: int | None = None
        self.began = self.printed = 0.0
        self.last = (0, "")

    def start(self, total: int | None) -> None:
        self.total, self.began, self.printed = total, time.monotonic(), time.monotonic()

    def update(self, steps: int, message: str) -> None:
        self.last = (steps, message)
        if time.monotonic() - self.printed >= self.interval:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        steps, message = self.last
        of = "" if self.total is None else f"/{self.total}"
        self.printed = time.monotonic()
        seconds = self.printed - self.began
        print(f"step {steps}{of}  {message}  {seconds:.1f} s", file=sys.stderr, flush=True)


class TqdmProgress(AbstractProgress):
    """Shows tqdm's bar, also in notebooks."""

    def start(self, total: int | None) -> None:
        from tqdm.auto import tqdm

        self.bar: Any = tqdm(total=total, unit="step")

    def update(self, steps: int, message: str) -> None:
        self.bar.set_postfix_str(message, refresh=False)
        self.bar.update(steps - self.bar.n)

    def close(self) -> None:
        self.bar.close()


class RichProgress(AbstractProgress):
    """Shows rich's bar."""

    def start(self, total: int | None) -> None:
        from rich import progress

        columns = (
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
        )
        self.bar: Any = progress.Progress(*columns)
        self.bar.start()
        self.task = self.bar.add_task("", total=total)

    def update(self, steps: int, message: str) -> None:
        self.bar.update(self.task, completed=steps, description=message)

    def close(self) -> None:
        self.bar.stop()


def as_progress(progress: bool | AbstractProgress) -> AbstractProgress:
    """Returns the given bar, or chooses one."""
    if isinstance(progress, AbstractProgress):
        return progress
    if not isinstance(progress, bool):
        raise TypeError(
            "`progress` must be True, False or an `eqopt.writing.AbstractProgress`; "
            f"got {progress!r}"
        )
    if not progress:
        return NoProgress()
    if importlib.util.find_spec("tqdm") is not None:
        return TqdmProgress()
    if importlib.util.find_spec("rich") is not None:
        return RichProgress()
    return TextProgress()
