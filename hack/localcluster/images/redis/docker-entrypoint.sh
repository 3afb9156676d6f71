#!/bin/sh
# Options or a configuration file alone mean the server. Like the public image, it serves the pod's network: set a password.
set -eu

case "${1:-}" in
  -* | *.conf) set -- redis-server "$@" ;;
esac
if [ "${1:-}" = redis-server ]; then
  shift
  exec redis-server "$@" --protected-mode no
fi
exec "$@"
