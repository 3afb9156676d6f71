"""A real PostgreSQL for a test: its own data folder and port, run by a user that is not root (initdb refuses root)."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg

_START_SECONDS: Final = 60.0
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "fsync": "off",  # A test kills processes, never the machine: the kernel keeps what was written.
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


class PostgresServer:
    """A PostgreSQL server that can be stopped, killed and started again on the same data and port."""

    user: Final = "postgres"
    password: Final = "correct horse/battery@staple"

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        """Prepare a server whose data lives in `folder`, which is handed to the unprivileged user."""
        self._folder = folder
        self._data = folder / "data"
        self._binaries = find_binaries()
        self._account = _unprivileged_account()
        self._settings = _SETTINGS | (settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def create(self) -> None:
        """Make the data folder."""
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)
        secret = self._folder / "password"
        secret.write_text(self.password)
        if self._account is not None:
            os.chown(secret, self._account.pw_uid, self._account.pw_gid)
        command: list[str | Path] = [self._binaries / "initdb", "-D", self._data, "-U", self.user, "--pwfile", secret]
        command += ["--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
        done = subprocess.run(self._as_user(command), capture_output=True, text=True, cwd=self._folder)
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command: list[str | Path] = [self._binaries / "postgres", "-D", self._data, "-p", str(self.port)]
        for name, value in (self._settings | {"unix_socket_directories": str(self._folder)}).items():
            command += ["-c", f"{name}={value}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user(command), stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Shut it down in order, ending its sessions."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Let it crash: no shutdown, no checkpoint."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start()

    def process_id(self) -> int:
        """Return the process id of the server, the parent of all its processes."""
        if self._process is None:
            raise RuntimeError("PostgreSQL is not running")
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database, as an application writes it."""
        password = self.password.replace("/", "%2F").replace("@", "%40").replace(" ", "%20")
        return f"postgresql+asyncpg://{self.user}:{password}@127.0.0.1:{self.port}/{database}"

    async def connect(self, database: str = "postgres") -> "asyncpg.Connection":
        """Open a session of one's own."""
        return await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=self.user, password=self.password, database=database
        )

    async def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database and return its URL."""
        connection = await self.connect()
        try:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        finally:
            await connection.close()
        return self.url(name)

    def _answers(self) -> bool:
        command: list[str | Path] = [self._binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command).returncode == 0

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, how)
        self._process.wait(timeout=30)
        self._process = None

    def _as_user(self, command: list[str | Path]) -> list[str]:
        words = [str(word) for word in command]
        if self._account is None:
            return words
        ids = [f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}", "--clear-groups"]
        # setpriv becomes the program, so that its process is the one that signals reach.
        return ["setpriv", *ids, "--", *words]


def find_binaries() -> Path:
    """Return the folder of PostgreSQL's programs: the newest of Debian's, or where initdb is on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Return the account to run as when this process is root, or None to run as this process does."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("there is no account postgres or nobody to run PostgreSQL as")


@contextlib.contextmanager
def running_postgres(*, settings: dict[str, str] | None = None) -> Iterator[PostgresServer]:
    """Run a PostgreSQL server for the block, and leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="shipkeeper-postgres-"))
    try:
        server = PostgresServer(folder, settings=settings)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
