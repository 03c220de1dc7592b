-- What turns the tables of an older version into those of schema.sql, one part a version, in order.
-- Format: a line "-- version: <number>", then statements, no semicolon in a comment. Each may run
-- again: several processes may start together, and one that was killed half way is started anew.
-- Missing tables are not made here: schema.sql was applied before. A column that exists already is
-- passed over (error 1060), and so is an index (1061), since MySQL has no ADD COLUMN IF NOT EXISTS.

-- version: 3
ALTER TABLE rmq_txn_identity ADD COLUMN secret VARBINARY(32) NOT NULL DEFAULT '';
ALTER TABLE rmq_txn_identity ADD COLUMN upgraded_at TIMESTAMP NULL DEFAULT NULL;
-- What a stranger may send did not fit: properties of 32 KiB, three times that when they are no UTF-8,
-- and six times when they are written as JSON.
ALTER TABLE rmq_txn_parked MODIFY COLUMN topic MEDIUMBLOB NOT NULL, MODIFY COLUMN message_id MEDIUMBLOB NOT NULL,
MODIFY COLUMN tag MEDIUMBLOB, MODIFY COLUMN message_key MEDIUMBLOB, MODIFY COLUMN properties MEDIUMBLOB;
-- Pruning finds old rows by it. Built beside running writes, online, by MySQL and MariaDB alike.
ALTER TABLE rmq_txn_inbox ADD INDEX by_age (consumer_group, handled_at);

-- version: 4
-- And a table more, rmq_txn_audit, which schema.sql made.
ALTER TABLE rmq_txn_identity ADD COLUMN compatible_from INT UNSIGNED NULL DEFAULT NULL;
