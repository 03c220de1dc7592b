#!/bin/bash
# The contract of the official image as far as the compose file uses it: an empty data folder is
# initialised, root gets MYSQL_ROOT_PASSWORD, scripts run against a server that only has a socket.
set -eu
[ -n "${MYSQL_ROOT_PASSWORD:-}" ] || { echo "MYSQL_ROOT_PASSWORD is not set" >&2; exit 1; }
if [ ! -d /var/lib/mysql/mysql ]; then
    mariadb-install-db --no-defaults --datadir=/var/lib/mysql --auth-root-authentication-method=normal \
        --skip-test-db >/dev/null
    mariadbd --no-defaults --datadir=/var/lib/mysql --skip-networking --socket=/run/mysqld/mysqld.sock &
    server=$!
    until mysqladmin --no-defaults --silent -S /run/mysqld/mysqld.sock -uroot ping; do sleep 0.2; done
    mysql --no-defaults -uroot -e "ALTER USER 'root'@'localhost' IDENTIFIED BY '$MYSQL_ROOT_PASSWORD'"
    for script in /docker-entrypoint-initdb.d/*.sh; do
        # shellcheck disable=SC1090  # the official image sources scripts that are not executable
        if [ -x "$script" ]; then "$script"; else . "$script"; fi
    done
    kill "$server"
    wait "$server"
fi
shift
exec mariadbd --no-defaults --datadir=/var/lib/mysql --socket=/run/mysqld/mysqld.sock --bind-address=0.0.0.0 "$@"
