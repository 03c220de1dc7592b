-- Tables of rmq_txn. Valid on MySQL 8 and MariaDB 10.6 and newer, safe to run again.
-- No semicolon stands in a comment: other tools split this file at them.
-- Keys are VARBINARY: collations would equate Order-A with order-a, and k with "k ".
-- Keys begin with time where they are ours, so inserts stay at the right edge of the B-tree.

-- One row: which database this is, and which version of these tables it holds.
-- database_id is stamped into every half message. A copy of the database that takes part on its
-- own needs a new one, or its producers answer for the original's transactions.
CREATE TABLE IF NOT EXISTS rmq_txn_identity (
    only_row       TINYINT UNSIGNED NOT NULL PRIMARY KEY,  -- always 1
    schema_version INT UNSIGNED     NOT NULL,
    database_id    VARBINARY(36)    NOT NULL,              -- a UUID, made when the schema was applied
    secret         VARBINARY(32)    NOT NULL DEFAULT '',   -- signs our half messages, random
    upgraded_at    TIMESTAMP        NULL DEFAULT NULL,     -- when version 3 replaced an older one
    compatible_from INT UNSIGNED    NULL DEFAULT NULL      -- packages that need this version or a newer one
                                                           -- may use these tables, NULL: only the newest
) ENGINE = InnoDB;

-- Producer: the evidence for check-back. A committed row proves its transaction committed,
-- a rolled-back row (the fence) makes sure that it never can.
CREATE TABLE IF NOT EXISTS rmq_txn_log (
    txn_id      VARBINARY(32)    NOT NULL PRIMARY KEY,
    state       TINYINT UNSIGNED NOT NULL,  -- 0 open: form B, never seen committed by its owner
                                            -- 1 committed: deliver the messages below
                                            -- 2 rolled back: the fence of a check-back
    message_ids VARBINARY(2048)  NOT NULL   -- of the half messages that won, by position, comma between
) ENGINE = InnoDB;

-- Producer: a copy of each message, committed with the transaction that publishes it, and kept until
-- the broker surely has the message. What the broker gave up on is published again from here.
CREATE TABLE IF NOT EXISTS rmq_txn_outbox (
    txn_id      VARBINARY(32)     NOT NULL,
    position    SMALLINT UNSIGNED NOT NULL,  -- of the message in its transaction, from 0
    message_id  VARBINARY(64)     NOT NULL,  -- of its half message, UNIQ_KEY
    topic       VARBINARY(127)    NOT NULL,
    message_key VARBINARY(1020),             -- KEYS
    tag         VARBINARY(1020),             -- TAGS
    properties  MEDIUMBLOB        NOT NULL,  -- all others, ours included, as JSON
    `body`      LONGBLOB          NOT NULL,  -- as sent
    failures    INT UNSIGNED      NOT NULL DEFAULT 0,  -- how often publishing it again failed
    retry_at    TIMESTAMP         NULL DEFAULT NULL,   -- not again before this time
    created_at  TIMESTAMP         NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (txn_id, position),
    KEY by_age (created_at)
) ENGINE = InnoDB;

-- Producer: who of a group runs, and whether it is well, by its own word. Brokers ask any client of a
-- group: copies are deleted only while each client that they name has a fresh row of one that is well.
-- Written before a client registers and each few seconds, read by the others of its group.
CREATE TABLE IF NOT EXISTS rmq_txn_producers (
    producer_group VARBINARY(120)   NOT NULL,
    instance       VARBINARY(120)   NOT NULL,            -- ends the client id that brokers know
    closing        TINYINT UNSIGNED NOT NULL DEFAULT 0,  -- 1: it said good-bye
    disturbances   INT UNSIGNED     NOT NULL DEFAULT 0,  -- how often it could not vouch for its answers
    seen_at        TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
    PRIMARY KEY (producer_group, instance)
) ENGINE = InnoDB;

-- Consumer: what the broker need not deliver any more: handled, committed together with the
-- handler's writes, or parked, committed together with the parked row below.
CREATE TABLE IF NOT EXISTS rmq_txn_inbox (
    consumer_group VARBINARY(120) NOT NULL,
    dedup_key      VARBINARY(255) NOT NULL,
    handled_at     TIMESTAMP      NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (consumer_group, dedup_key),
    KEY by_age (consumer_group, handled_at)  -- what is old enough to be pruned
) ENGINE = InnoDB;

-- Consumer: messages that failed. A parked one always has its inbox row, so its deliveries are
-- skipped, and this row alone says that it was not handled. A failing one is only a counter, has no
-- inbox row, and may be left over if a process died at the wrong moment.
CREATE TABLE IF NOT EXISTS rmq_txn_parked (
    consumer_group    VARBINARY(120)   NOT NULL,
    dedup_key         VARBINARY(255)   NOT NULL,
    state             TINYINT UNSIGNED NOT NULL,  -- 0 failing: the broker delivers it again
                                                  -- 1 rejected by its handler
                                                  -- 2 failed as often as allowed
                                                  -- 3 older than the inbox remembers, never tried
                                                  -- 4 lost: by DDL its writes may stand in part
                                                  -- 5 buried by the broker, taken from %DLQ%
                                                  -- 6 no handler took it, to the last delivery
    attempts          INT UNSIGNED     NOT NULL,  -- own failures, replays included
    error             VARBINARY(2000)  NOT NULL,  -- the last one
    topic             MEDIUMBLOB       NOT NULL,  -- a stranger may set these four, up to 96 KiB
    message_id        MEDIUMBLOB       NOT NULL,  -- of the broker, UNIQ_KEY
    tag               MEDIUMBLOB,
    message_key       MEDIUMBLOB,                 -- KEYS
    redeliveries      INT UNSIGNED     NOT NULL DEFAULT 0,
    born_milliseconds BIGINT           NOT NULL DEFAULT 0,
    properties        MEDIUMBLOB,                 -- as JSON, filled when it is parked
    `body`            LONGBLOB,                   -- as received, filled when it is parked
    first_failed_at   TIMESTAMP        NOT NULL DEFAULT CURRENT_TIMESTAMP,
    last_failed_at    TIMESTAMP        NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
    PRIMARY KEY (consumer_group, dedup_key)
) ENGINE = InnoDB;

-- What people did by hand to transactions and messages, each in the transaction that did it. Few rows,
-- never pruned.
CREATE TABLE IF NOT EXISTS rmq_txn_audit (
    audit_id       VARBINARY(32)   NOT NULL PRIMARY KEY,  -- made of time and chance, as transaction ids are
    done_at        TIMESTAMP       NOT NULL DEFAULT CURRENT_TIMESTAMP,
    action         VARBINARY(32)   NOT NULL,              -- dropped, replayed, resolved, recovered
    subject        VARBINARY(255)  NOT NULL,              -- a transaction, its message ID.position, a dedup key
    consumer_group VARBINARY(120)  NOT NULL DEFAULT '',   -- of a parked message
    done_by        VARBINARY(255)  NOT NULL,
    note           VARBINARY(2000) NOT NULL,              -- why, and what was there before
    KEY by_subject (subject)
) ENGINE = InnoDB;
