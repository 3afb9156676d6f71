"""The names of a policy's keys in Redis. Programs in other languages use the same names: docs/limits.md.

One hash tag for a namespace: its policies share a slot, so one call can charge several of them in one step. Policies
and counters have prefixes of their own, so that an application's user may write the ones and only read the others.
"""

from dataclasses import dataclass

DEFAULT_PREFIX = "shipkeeper"
DEFAULT_SUBJECT = "default"
MAX_SUBJECT = 256


@dataclass(frozen=True, kw_only=True)
class PolicyKeys:
    """Where one policy and its counters live."""

    namespace: str
    policy: str
    prefix: str = DEFAULT_PREFIX

    @property
    def config(self) -> str:
        """Key of the compiled policy; only the operator writes it."""
        return f"{self.prefix}:{{{self.namespace}}}:config:{self.policy}"

    @property
    def states(self) -> str:
        """What every key of a subject begins with."""
        return f"{self.prefix}:{{{self.namespace}}}:state:{self.policy}:"

    @property
    def subjects(self) -> str:
        """Key of the register of subjects, kept where the policy bounds their number."""
        return f"{self.prefix}:{{{self.namespace}}}:state:{self.policy}"

    @property
    def absent(self) -> str:
        """Key beside the policy that never exists: what can be tried on it shows whether the store takes writes."""
        return f"{self.prefix}:{{{self.namespace}}}:absent"

    def state(self, subject: str) -> str:
        """Key of the counters of one subject. Raises ValueError for a subject that cannot be in a key."""
        return self.states + checked_subject(subject)

    def subject_of(self, state_key: str) -> str:
        """Return the subject whose counters are under this key."""
        return state_key.removeprefix(self.states)


def checked_subject(subject: str) -> str:
    """Return the subject; raise ValueError when it is empty, too long or has control characters."""
    if not subject or len(subject) > MAX_SUBJECT or not subject.isprintable():
        raise ValueError(f"subject must have 1 to {MAX_SUBJECT} printable characters, got {subject[:40]!r}")
    return subject
