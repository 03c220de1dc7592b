#!/bin/bash
# The contract of the official image as far as we use it: an empty data folder is initialised, accounts and
# a database are made from the environment, scripts run against a server that only has a socket. Started as
# root it goes on as mysql.
set -eu
[ -n "${MYSQL_ROOT_PASSWORD:-}" ] || { echo "MYSQL_ROOT_PASSWORD is not set" >&2; exit 1; }
if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=mysql --regid=mysql --clear-groups "$0" "$@"; fi
if [ ! -d /var/lib/mysql/mysql ]; then
    mariadb-install-db --no-defaults --datadir=/var/lib/mysql --auth-root-authentication-method=normal \
        --skip-test-db >/dev/null
    mariadbd --no-defaults --datadir=/var/lib/mysql --skip-networking --socket=/run/mysqld/mysqld.sock &
    server=$!
    until mysqladmin --no-defaults --silent -S /run/mysqld/mysqld.sock -uroot ping; do sleep 0.2; done
    mysql --no-defaults -uroot <<SQL
CREATE USER 'root'@'%' IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';
GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;
ALTER USER 'root'@'localhost' IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';
SQL
    export MYSQL_PWD=$MYSQL_ROOT_PASSWORD
    if [ -n "${MYSQL_DATABASE:-}" ]; then
        mysql --no-defaults -uroot -e "CREATE DATABASE \`$MYSQL_DATABASE\`"
    fi
    if [ -n "${MYSQL_USER:-}" ]; then
        mysql --no-defaults -uroot -e "CREATE USER '$MYSQL_USER'@'%' IDENTIFIED BY '$MYSQL_PASSWORD'"
        mysql --no-defaults -uroot -e "GRANT ALL ON \`${MYSQL_DATABASE:-}\`.* TO '$MYSQL_USER'@'%'"
    fi
    unset MYSQL_PWD
    for script in /docker-entrypoint-initdb.d/*.sh; do
        [ -e "$script" ] || continue
        # shellcheck disable=SC1090  # the official image sources scripts that are not executable
        if [ -x "$script" ]; then "$script"; else . "$script"; fi
    done
    kill "$server"
    wait "$server"
fi
shift
exec mariadbd --no-defaults --datadir=/var/lib/mysql --socket=/run/mysqld/mysqld.sock --bind-address=0.0.0.0 "$@"
