#!/bin/bash
# Sourced once by the entry point of the mysql image, when the data volume is empty: a database and
# an account for each service, which sees no other.
MYSQL_PWD=$MYSQL_ROOT_PASSWORD mysql -uroot <<SQL
CREATE DATABASE account CHARACTER SET utf8mb4;
CREATE USER 'account'@'%' IDENTIFIED BY '$ACCOUNT_PASSWORD';
GRANT ALL ON account.* TO 'account'@'%';
CREATE DATABASE points CHARACTER SET utf8mb4;
CREATE USER 'points'@'%' IDENTIFIED BY '$POINTS_PASSWORD';
GRANT ALL ON points.* TO 'points'@'%';
SQL
