-- Tables of the account service. Valid on MySQL 8 and MariaDB 10.6 and newer; safe to run again.
-- Ids are compared byte by byte: other collations equate "Order-A" with "order-a".

CREATE TABLE IF NOT EXISTS account (
    user_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    balance BIGINT NOT NULL,                                   -- in fen, 1/100 yuan
    CONSTRAINT balance_not_negative CHECK (balance >= 0)
) ENGINE = InnoDB;

-- One row for each committed transfer, inserted in the transaction that moves its money: the row is
-- what makes a repeated request harmless.
CREATE TABLE IF NOT EXISTS transfer (
    transfer_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    payer       VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    payee       VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    amount      BIGINT      NOT NULL,                          -- in fen
    txn_id      CHAR(32)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at  DATETIME(3) NOT NULL DEFAULT (UTC_TIMESTAMP(3))
) ENGINE = InnoDB;
