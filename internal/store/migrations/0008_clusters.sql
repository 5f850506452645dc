-- +goose Up
-- Clusters that came in through the web. The credential is sealed: a data key of its own, wrapped by a key that is not in
-- the database. What is sealed opens in its own row and column only.
CREATE TABLE managed_clusters (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    server     TEXT   NOT NULL,
    key_id     TEXT   NOT NULL,
    wrapped    TEXT   NOT NULL,
    sealed     TEXT   NOT NULL,
    -- Moves with the credential and not with the key, so that a rotation makes nobody connect anew.
    version    BIGINT NOT NULL,
    added_by   TEXT   NOT NULL,
    added_at   BIGINT NOT NULL,
    changed_by TEXT   NOT NULL,
    changed_at BIGINT NOT NULL
);
CREATE INDEX managed_clusters_key ON managed_clusters (key_id);

-- Moves with every change of the table, removals too: what a replica looks at to see whether there is something new.
CREATE TABLE managed_clusters_seq (
    id  BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL
);
INSERT INTO managed_clusters_seq (id, seq) VALUES (1, 0);

-- +goose Down
DROP TABLE managed_clusters_seq;
DROP TABLE managed_clusters;
