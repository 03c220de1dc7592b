-- Every statement of this package. Format: a line "-- name: <name>", a reason, the statement.
-- `body` is a reserved word in MariaDB's sql_mode ORACLE.
-- Parameters only, never built text. Plain INSERT, never IGNORE: IGNORE truncates ids silently.

-- name: set_tripwire
-- The first statement of every transaction, and its beginning: autocommit is off, so BEGIN would
-- only be a round trip more. What commits or rolls back behind our back removes it.
SAVEPOINT rmq_txn_tripwire

-- name: release_tripwire
-- The last statement before COMMIT. Error 1305: the transaction we began is gone.
RELEASE SAVEPOINT rmq_txn_tripwire

-- name: kill_connection
-- Before the producer asks about its own lost COMMIT, and when a connection lent from the pool is replaced
-- whose first row may have arrived: a silently cut line would keep the
-- transaction and its locks on the server for hours. Own connections need no privilege.
KILL CONNECTION %s

-- name: read_uptime
-- Before it: after a restart of the server that id may be another connection's. Whole seconds.
SHOW GLOBAL STATUS LIKE 'Uptime'

-- name: read_schema_version
-- Alone, from columns that every version has: it decides whether the others can be read.
SELECT schema_version, database_id FROM rmq_txn_identity WHERE only_row = 1

-- name: read_identity
-- What version 3 brought.
SELECT secret, UNIX_TIMESTAMP(upgraded_at) FROM rmq_txn_identity WHERE only_row = 1

-- name: read_compatible_from
-- Of tables that are newer than this package, which therefore have the column.
SELECT compatible_from FROM rmq_txn_identity WHERE only_row = 1

-- name: list_columns_and_indexes
-- Of our tables, for `rmq-txn schema check`: a migration tool may have left something out.
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name IN %s
UNION SELECT table_name, index_name FROM information_schema.statistics
WHERE table_schema = DATABASE() AND table_name IN %s

-- name: list_tables_without_transactions
-- For a warning at start: ROLLBACK does not undo what is written there.
SELECT table_name, engine FROM information_schema.tables
WHERE table_schema = DATABASE() AND engine IN ('MyISAM', 'Aria', 'MEMORY', 'CSV', 'ARCHIVE', 'MRG_MyISAM')
ORDER BY table_name LIMIT 20

-- name: read_clock
-- The clock that stamps our rows decides how old a message is.
SELECT UNIX_TIMESTAMP()

-- name: insert_identity
INSERT INTO rmq_txn_identity (only_row, schema_version, database_id, secret, compatible_from)
VALUES (1, %s, %s, %s, %s)

-- name: raise_schema_version
-- After the tables were made and changed. Never lowered: a newer package may have been here.
UPDATE rmq_txn_identity SET secret = IF(secret = '', %s, secret),
upgraded_at = IF(schema_version < 3, NOW(), upgraded_at), schema_version = %s, compatible_from = %s
WHERE only_row = 1 AND schema_version < %s

-- name: insert_log_row
-- Duplicate key 1062: a check-back fenced this transaction first.
INSERT INTO rmq_txn_log (txn_id, state, message_ids) VALUES (%s, %s, %s)

-- name: commit_log_row
-- Form B: the row was inserted as open, before business SQL, to hold check-backs off.
UPDATE rmq_txn_log SET state = 1 WHERE txn_id = %s AND state = 0

-- name: read_log_row
-- A locking read: a plain one on an older snapshot misses the row the duplicate key spoke of.
-- Not FOR UPDATE: two check-backs that hold the shared lock of their failed INSERT deadlock there.
SELECT state, message_ids FROM rmq_txn_log WHERE txn_id = %s LOCK IN SHARE MODE

-- name: claim_inbox_row
-- Duplicate key 1062: handled before. A parallel duplicate waits here for the first to end.
INSERT INTO rmq_txn_inbox (consumer_group, dedup_key) VALUES (%s, %s)

-- name: release_inbox_row
-- After counting a failure: the claim was only the lock of the key, the message comes again.
DELETE FROM rmq_txn_inbox WHERE consumer_group = %s AND dedup_key = %s

-- name: insert_parked_row
-- Duplicate key 1062: it failed before. Always under the claim of the inbox row of the same key.
INSERT INTO rmq_txn_parked (consumer_group, dedup_key, state, attempts, error, topic, message_id)
VALUES (%s, %s, %s, %s, %s, %s, %s)

-- name: count_failure
-- One more failure, of a delivery or of a replay. The state stays.
UPDATE rmq_txn_parked SET attempts = attempts + 1, error = %s WHERE consumer_group = %s AND dedup_key = %s

-- name: read_attempts
-- Own failures of one message so far.
SELECT attempts FROM rmq_txn_parked WHERE consumer_group = %s AND dedup_key = %s

-- name: park_row
-- From failing to parked, with all that a replay needs.
UPDATE rmq_txn_parked SET state = %s, tag = %s, message_key = %s, redeliveries = %s, born_milliseconds = %s,
properties = %s, `body` = %s WHERE consumer_group = %s AND dedup_key = %s AND state = 0

-- name: forget_failures
-- In the transaction of a success after failures.
DELETE FROM rmq_txn_parked WHERE consumer_group = %s AND dedup_key = %s AND state = 0

-- name: unpark
-- First of two replays, or a drop: the second one finds no row.
DELETE FROM rmq_txn_parked WHERE consumer_group = %s AND dedup_key = %s AND state > 0

-- name: read_parked_row
-- One message with everything, for a replay and for people.
SELECT consumer_group, dedup_key, state, attempts, error, topic, message_id,
UNIX_TIMESTAMP(first_failed_at), UNIX_TIMESTAMP(last_failed_at), tag, message_key, redeliveries, born_milliseconds, properties, `body`
FROM rmq_txn_parked WHERE consumer_group = %s AND dedup_key = %s AND state > 0

-- name: list_parked_rows
-- Oldest first, without bodies. A failing row whose message has an inbox row was left over: handled.
SELECT consumer_group, dedup_key, state, attempts, error, topic, message_id,
UNIX_TIMESTAMP(first_failed_at), UNIX_TIMESTAMP(last_failed_at)
FROM rmq_txn_parked AS parked
WHERE (consumer_group = %s OR %s = '') AND (state > 0 OR NOT EXISTS (
    SELECT 1 FROM rmq_txn_inbox AS inbox
    WHERE inbox.consumer_group = parked.consumer_group AND inbox.dedup_key = parked.dedup_key))
ORDER BY first_failed_at, consumer_group, dedup_key LIMIT %s

-- name: count_parked_rows
-- For health. A failing row whose message has an inbox row was left over: it was handled.
SELECT state > 0 AS is_parked, COUNT(*), UNIX_TIMESTAMP(MIN(first_failed_at))
FROM rmq_txn_parked AS parked
WHERE consumer_group = %s AND (state > 0 OR NOT EXISTS (
    SELECT 1 FROM rmq_txn_inbox AS inbox
    WHERE inbox.consumer_group = parked.consumer_group AND inbox.dedup_key = parked.dedup_key))
GROUP BY is_parked

-- name: insert_audit_row
-- In the transaction of what was done by hand, so that neither is there without the other.
INSERT INTO rmq_txn_audit (audit_id, action, subject, consumer_group, done_by, note) VALUES (%s, %s, %s, %s, %s, %s)

-- name: look_up_audit_rows
-- Of one transaction: its id begins the keys of its messages.
SELECT UNIX_TIMESTAMP(done_at), action, subject, consumer_group, done_by, note FROM rmq_txn_audit
WHERE subject >= %s AND subject < %s ORDER BY audit_id

-- name: list_audit_rows
-- Newest first.
SELECT UNIX_TIMESTAMP(done_at), action, subject, consumer_group, done_by, note FROM rmq_txn_audit
ORDER BY audit_id DESC LIMIT %s

-- name: decide_open_row
-- By a person: the server committed it in the middle, so nobody else knows what of it stands.
UPDATE rmq_txn_log SET state = %s WHERE txn_id = %s AND state = 0

-- name: insert_outbox_rows
-- In the commit of the log row. The driver makes one statement of all rows of a transaction.
INSERT INTO rmq_txn_outbox (txn_id, position, message_id, topic, message_key, tag, properties, `body`)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)

-- name: undo_probe
-- After an INSERT that only had to be possible: what a fence needs. Leaves the transaction open.
ROLLBACK TO SAVEPOINT rmq_txn_tripwire

-- name: insert_producer
-- Before its client registers with a broker: who is named there has a row.
INSERT INTO rmq_txn_producers (producer_group, instance, closing, disturbances, seen_at)
VALUES (%s, %s, %s, %s, NOW(3))

-- name: note_producer
-- Each round. No row: somebody deleted it, it is inserted again.
UPDATE rmq_txn_producers SET closing = %s, disturbances = %s, seen_at = NOW(3)
WHERE producer_group = %s AND instance = %s

-- name: read_producers
-- The whole group, ages by the one clock that all of it shares, and what that clock says.
SELECT UNIX_TIMESTAMP(NOW(6)), instance, TIMESTAMPDIFF(MICROSECOND, seen_at, NOW(3)) / 1000000, closing, disturbances
FROM rmq_txn_producers WHERE producer_group = %s

-- name: delete_producer
-- One that is gone for minutes, by whoever sees it.
DELETE FROM rmq_txn_producers WHERE producer_group = %s AND instance = %s

-- name: elect
-- 1 for the one connection of the server that has the lock. It is not taken twice: it counts.
SELECT IF(IS_USED_LOCK(%s) <=> CONNECTION_ID(), 1, GET_LOCK(%s, 0))

-- name: read_overdue_rows
-- By one clock, the database's. A row that can't be published steps aside until its retry_at, as does one
-- that was: a round that walked past all of these for each page would take longer the more it has done.
SELECT txn_id, position, message_id, failures, topic, message_key, tag,
TIMESTAMPDIFF(SECOND, created_at, NOW()), properties, `body`, UNIX_TIMESTAMP(created_at)
FROM rmq_txn_outbox
WHERE created_at >= FROM_UNIXTIME(%s) AND created_at <= NOW() - INTERVAL %s SECOND AND (retry_at IS NULL OR retry_at <= NOW())
ORDER BY created_at LIMIT %s

-- name: note_attempts
-- In the table, not in memory: the next relay goes on from here. For all that went alike. By the
-- ids as well, since MariaDB takes pairs alone for no range of a key in an UPDATE, and walks over the table.
UPDATE rmq_txn_outbox SET failures = failures + %s, retry_at = NOW() + INTERVAL %s SECOND
WHERE txn_id IN %s AND (txn_id, position) IN %s

-- name: delete_outbox_rows
-- By the relay, which published them again.
DELETE FROM rmq_txn_outbox WHERE txn_id IN %s AND (txn_id, position) IN %s

-- name: delete_outbox_transactions
-- By the process that sent their verdicts, when the broker surely has them.
DELETE FROM rmq_txn_outbox WHERE txn_id IN %s

-- name: count_outbox
-- Up to a limit, from one index alone. Oldest and newest are ends of indexes. Asked for together with the
-- number of all, each row would be read for them.
SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM rmq_txn_outbox LIMIT %s) AS counted),
TIMESTAMPDIFF(SECOND, (SELECT MIN(created_at) FROM rmq_txn_outbox), NOW()),
(SELECT MAX(txn_id) FROM rmq_txn_outbox)

-- name: count_outbox_by_topic
-- For people who look.
SELECT topic, COUNT(*), TIMESTAMPDIFF(SECOND, MIN(created_at), NOW()) FROM rmq_txn_outbox
GROUP BY topic ORDER BY topic

-- name: read_old_log_rows
-- Ids are made of time, so age is a range of the primary key. An open row was never seen to end,
-- and one with copies in the outbox may be asked about again: both stay. With LIMIT the copies are looked
-- up row by row: of NOT EXISTS the server makes a table of all copies, anew for each batch.
SELECT txn_id FROM rmq_txn_log AS log WHERE txn_id > %s AND txn_id < %s AND state <> 0
AND (SELECT 1 FROM rmq_txn_outbox AS outbox WHERE outbox.txn_id = log.txn_id LIMIT 1) IS NULL
ORDER BY txn_id LIMIT %s

-- name: delete_log_rows
-- By key, so that nothing but these rows is locked. They were committed long ago and change no more.
DELETE FROM rmq_txn_log WHERE txn_id IN %s AND state <> 0

-- name: count_old_log_rows
-- As read_old_log_rows, for a dry run.
SELECT COUNT(*) FROM rmq_txn_log AS log WHERE txn_id < %s AND state <> 0
AND (SELECT 1 FROM rmq_txn_outbox AS outbox WHERE outbox.txn_id = log.txn_id LIMIT 1) IS NULL

-- name: read_old_inbox_rows
-- From the index by_age. The row of a parked message stays: it is what skips its deliveries. With LIMIT
-- as in read_old_log_rows.
SELECT dedup_key FROM rmq_txn_inbox AS inbox
WHERE consumer_group = %s AND handled_at < FROM_UNIXTIME(%s)
AND (SELECT 1 FROM rmq_txn_parked AS parked
    WHERE parked.consumer_group = inbox.consumer_group AND parked.dedup_key = inbox.dedup_key AND parked.state > 0
    LIMIT 1) IS NULL
ORDER BY handled_at LIMIT %s

-- name: delete_inbox_rows
-- By key. The age again, since a key may have been claimed anew meanwhile, in a form that keeps the
-- server from walking by_age instead of the keys.
DELETE FROM rmq_txn_inbox
WHERE consumer_group = %s AND dedup_key IN %s AND UNIX_TIMESTAMP(handled_at) < %s

-- name: count_old_inbox_rows
-- As read_old_inbox_rows, for a dry run.
SELECT COUNT(*) FROM rmq_txn_inbox AS inbox
WHERE consumer_group = %s AND handled_at < FROM_UNIXTIME(%s)
AND (SELECT 1 FROM rmq_txn_parked AS parked
    WHERE parked.consumer_group = inbox.consumer_group AND parked.dedup_key = inbox.dedup_key AND parked.state > 0
    LIMIT 1) IS NULL

-- name: list_inbox_groups
-- One step of the primary key a group, not a walk over the table: asked with the group before.
SELECT MIN(consumer_group) FROM rmq_txn_inbox WHERE consumer_group > %s

-- name: count_recent_log_rows
-- For a forecast: what came since then.
SELECT COUNT(*) FROM rmq_txn_log WHERE txn_id >= %s

-- name: count_recent_inbox_rows
-- As count_recent_log_rows, of one group.
SELECT COUNT(*) FROM rmq_txn_inbox WHERE consumer_group = %s AND handled_at >= FROM_UNIXTIME(%s)

-- name: read_table_sizes
-- The server's own estimate, indexes included.
SELECT table_name, table_rows, data_length + index_length FROM information_schema.tables
WHERE table_schema = DATABASE() AND table_name IN ('rmq_txn_log', 'rmq_txn_inbox')

-- name: count_newest_log_rows
-- For `rmq-txn status`: the right edge of the primary key, so that it costs the same in any table.
SELECT state, COUNT(*), MIN(txn_id)
FROM (SELECT txn_id, state FROM rmq_txn_log ORDER BY txn_id DESC LIMIT %s) AS newest GROUP BY state

-- name: list_parked_groups
-- Those with failing or parked messages, which are few.
SELECT DISTINCT consumer_group FROM rmq_txn_parked

-- name: list_newest_inbox_keys
-- Whose topics a group handles: the keys of messages of ours name it.
SELECT dedup_key FROM rmq_txn_inbox WHERE consumer_group = %s ORDER BY handled_at DESC LIMIT %s

-- name: count_producers
-- By group: who runs, who said good-bye, who is silent, and for how long at least.
SELECT producer_group, SUM(closing = 0 AND seen_at >= NOW(3) - INTERVAL %s SECOND), SUM(closing = 1),
SUM(closing = 0 AND seen_at < NOW(3) - INTERVAL %s SECOND)
FROM rmq_txn_producers GROUP BY producer_group

-- name: read_server_settings
-- For `rmq-txn doctor`: SELECT @@name would fail for a name that only one brand has.
SHOW GLOBAL VARIABLES WHERE variable_name IN %s

-- name: try_select
-- For `rmq-txn doctor`, as the next ones: no row is touched, the privilege is asked for all the same.
SELECT COUNT(*) FROM rmq_txn_identity, rmq_txn_log, rmq_txn_outbox, rmq_txn_producers, rmq_txn_inbox, rmq_txn_parked,
rmq_txn_audit WHERE 1 = 0

-- name: try_update
-- One column of each table.
UPDATE rmq_txn_log, rmq_txn_outbox, rmq_txn_producers, rmq_txn_inbox, rmq_txn_parked
SET rmq_txn_log.message_ids = '', rmq_txn_outbox.failures = 0, rmq_txn_producers.disturbances = 0,
rmq_txn_inbox.handled_at = NOW(), rmq_txn_parked.attempts = 0 WHERE 1 = 0

-- name: try_delete
-- From all of them.
DELETE FROM rmq_txn_log, rmq_txn_outbox, rmq_txn_producers, rmq_txn_inbox, rmq_txn_parked
USING rmq_txn_log, rmq_txn_outbox, rmq_txn_producers, rmq_txn_inbox, rmq_txn_parked WHERE 1 = 0

-- name: try_insert_log
-- An INSERT has one table.
INSERT INTO rmq_txn_log (txn_id, state, message_ids) SELECT txn_id, state, message_ids FROM rmq_txn_log WHERE 1 = 0

-- name: try_insert_outbox
-- As before it.
INSERT INTO rmq_txn_outbox (txn_id, position, message_id, topic, properties, `body`)
SELECT txn_id, position, message_id, topic, properties, `body` FROM rmq_txn_outbox WHERE 1 = 0

-- name: try_insert_producers
-- As before it.
INSERT INTO rmq_txn_producers (producer_group, instance) SELECT producer_group, instance FROM rmq_txn_producers WHERE 1 = 0

-- name: try_insert_inbox
-- As before it.
INSERT INTO rmq_txn_inbox (consumer_group, dedup_key) SELECT consumer_group, dedup_key FROM rmq_txn_inbox WHERE 1 = 0

-- name: try_insert_parked
-- As before it.
INSERT INTO rmq_txn_parked (consumer_group, dedup_key, state, attempts, error, topic, message_id)
SELECT consumer_group, dedup_key, state, attempts, error, topic, message_id FROM rmq_txn_parked WHERE 1 = 0

-- name: try_insert_audit
-- As before it.
INSERT INTO rmq_txn_audit (audit_id, action, subject, done_by, note)
SELECT audit_id, action, subject, done_by, note FROM rmq_txn_audit WHERE 1 = 0

-- name: read_uncommitted
-- From the next transaction of this connection on: a row that only it sees belongs to a transaction
-- that has not ended. Asked with a lock, the same question would hold others up.
SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED

-- name: look_up_log_row
-- For people: a plain read, it waits for nobody.
SELECT state, message_ids FROM rmq_txn_log WHERE txn_id = %s

-- name: look_up_copies
-- For people, without bodies.
SELECT position, topic, failures, TIMESTAMPDIFF(SECOND, created_at, NOW()) FROM rmq_txn_outbox
WHERE txn_id = %s ORDER BY position

-- name: look_up_inbox_rows
-- For people: dedup keys begin with the transaction, so those of one are a range of the primary key.
SELECT dedup_key FROM rmq_txn_inbox WHERE consumer_group = %s AND dedup_key >= %s AND dedup_key < %s

-- name: look_up_failures
-- For people: of all groups, so the table is walked. It is short, and bodies are not read.
SELECT consumer_group, dedup_key, state, attempts, error FROM rmq_txn_parked
WHERE dedup_key >= %s AND dedup_key < %s
