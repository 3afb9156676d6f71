#!/bin/bash
# Makes the data folder at the first start, then becomes the server. A start that was interrupted is made again.
set -euo pipefail

[ "${1:-postgres}" = postgres ] || [ "${1#-}" != "$1" ] || exec "$@"
[ "${1:-}" = postgres ] && shift

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}

if [ ! -s "$PGDATA/PG_VERSION" ] || [ ! -e "$PGDATA/.initialized" ]; then
  if [ -z "${POSTGRES_PASSWORD:-}" ]; then
    echo "POSTGRES_PASSWORD must be set: the database is open to the network." >&2
    exit 1
  fi
  mkdir -p "$PGDATA"
  find "$PGDATA" -mindepth 1 -delete
  # Through a file descriptor: the password appears in no list of processes.
  initdb --pgdata="$PGDATA" --username="$user" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") \
    --encoding=UTF8 --locale=C.UTF-8 --auth-local=scram-sha-256 --auth-host=scram-sha-256 --no-instructions
  {
    echo "listen_addresses = '*'"
    # A read-only root file system has no other place that is surely writable.
    echo "unix_socket_directories = '$PGDATA'"
  } >> "$PGDATA/postgresql.conf"
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  if [ "$database" != postgres ]; then
    # Single-user mode: nobody can connect before the database is complete.
    printf 'CREATE DATABASE "%s" OWNER "%s";\n' "${database//\"/\"\"}" "${user//\"/\"\"}" |
      postgres --single -j -D "$PGDATA" postgres > /dev/null
  fi
  touch "$PGDATA/.initialized"
fi
unset POSTGRES_PASSWORD
exec postgres -D "$PGDATA" "$@"
