"""Tells a waiting person what is being done and for how long, on stderr so that results on stdout stay clean."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT_SECONDS = 10.0


def say(text: str) -> None:
    """Print one line of progress."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, repeat every ten seconds that it still runs, and say how long it took."""
    began = time.monotonic()
    ended = threading.Event()

    def heartbeat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            say(f"    ... {title}: {time.monotonic() - began:.0f} s")

    say(f"  {title} ...")
    thread = threading.Thread(target=heartbeat, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        say(f"  {title}: failed after {time.monotonic() - began:.1f} s")
        raise
    finally:
        ended.set()
        thread.join()
    say(f"  {title}: {time.monotonic() - began:.1f} s")
