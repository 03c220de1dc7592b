USE account;
CREATE TABLE account (user_id VARCHAR(64) PRIMARY KEY, balance BIGINT NOT NULL);
CREATE TABLE payment (transfer_id VARCHAR(64) PRIMARY KEY, user_id VARCHAR(64) NOT NULL, amount BIGINT NOT NULL);
INSERT INTO account VALUES ('alice', 50000);

USE points;
CREATE TABLE points (user_id VARCHAR(64) PRIMARY KEY, points BIGINT NOT NULL);
INSERT INTO points VALUES ('alice', 0);
