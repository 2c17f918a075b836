# PostgreSQL with a fresh cluster in $1. It refuses to run as root, and so runs as nobody then.
set -eu
as=
if [ "$(id -u)" = 0 ]; then
  chown 65534:65534 "$1"
  as="setpriv --reuid=65534 --regid=65534 --clear-groups"
fi
cd "$1"
$as initdb --pgdata "$1/data" --username app --auth trust --encoding UTF8 --no-locale --no-sync > "$1/initdb.log"
# What changes its user would outlive the sidecar that started it.
[ -z "$as" ] || as="$as --pdeathsig INT"
exec $as postgres -D "$1/data" -h "$HOST" -p "$PORT" -k "$1" -F -c max_connections=30
