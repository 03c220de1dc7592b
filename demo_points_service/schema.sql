-- Tables of the points service. Valid on MySQL 8 and MariaDB 10.6 and newer; safe to run again.
-- Ids are compared byte by byte: other collations equate "Order-A" with "order-a".

CREATE TABLE IF NOT EXISTS points_balance (
    user_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    points  BIGINT NOT NULL
) ENGINE = InnoDB;

-- The ledger: one entry for each transfer, also for one that earns no point.
CREATE TABLE IF NOT EXISTS points_entry (
    transfer_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    user_id     VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    points      BIGINT      NOT NULL,
    txn_id      CHAR(32)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at  DATETIME(3) NOT NULL DEFAULT (UTC_TIMESTAMP(3)),
    KEY entries_of_a_user (user_id, created_at)
) ENGINE = InnoDB;
