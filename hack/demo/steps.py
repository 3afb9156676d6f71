"""Shows what is being done and how long it took, and says clearly where and why it failed."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class DemoError(Exception):
    """A step failed; the text is the reason, for a person."""


@dataclass(frozen=True)
class StepTime:
    """One finished step."""

    title: str
    seconds: float


class Steps:
    """Runs titled steps one after another and remembers their times."""

    def __init__(self) -> None:
        """Begin with no step done."""
        self.done: list[StepTime] = []
        self.current = "start"

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the title, run the body, print the seconds it took."""
        self.current = title
        say(f"\n==> {title}")
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.done.append(StepTime(title, seconds))
        say(f"    done in {seconds:.1f} s")

    def table(self) -> str:
        """Return the seconds of each step and their sum."""
        width = max(len(each.title) for each in self.done)
        rows = [f"{each.title:<{width}}  {each.seconds:7.1f} s" for each in self.done]
        total = sum(each.seconds for each in self.done)
        return "\n".join([*rows, f"{'total':<{width}}  {total:7.1f} s"])


def say(text: str) -> None:
    """Print at once, so that a pipe shows progress too."""
    print(text, flush=True)


class LiveLine:
    """One line that is rewritten on a terminal; elsewhere a new line, at most every few seconds."""

    _SECONDS_BETWEEN_LINES = 5.0

    def __init__(self) -> None:
        """Begin with an empty line."""
        self._terminal = sys.stdout.isatty()
        self._shown = ""
        self._last = 0.0

    def show(self, text: str) -> None:
        """Show the text instead of the one before."""
        if text == self._shown:
            return
        now = time.monotonic()
        if self._terminal:
            print(f"\r\033[K    {text}", end="", flush=True)
        elif now - self._last < self._SECONDS_BETWEEN_LINES:
            return
        else:
            say(f"    {text}")
        self._shown, self._last = text, now

    def close(self, text: str) -> None:
        """Show the last text and end the line."""
        if self._terminal:
            print(f"\r\033[K    {text}", flush=True)
        elif text != self._shown:
            say(f"    {text}")
