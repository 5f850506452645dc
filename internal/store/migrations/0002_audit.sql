-- +goose Up
CREATE TABLE audit (
    seq      BIGINT NOT NULL PRIMARY KEY,
    at       BIGINT NOT NULL,
    actor    TEXT   NOT NULL,
    via      TEXT   NOT NULL,
    session  TEXT   NOT NULL,
    addr     TEXT   NOT NULL,
    action   TEXT   NOT NULL,
    phase    TEXT   NOT NULL,
    cluster  TEXT   NOT NULL,
    node     TEXT   NOT NULL,
    node_uid TEXT   NOT NULL,
    batch    TEXT   NOT NULL,
    outcome  TEXT   NOT NULL,
    reason   TEXT   NOT NULL,
    detail   TEXT   NOT NULL,
    prev     TEXT   NOT NULL,
    hash     TEXT   NOT NULL
);
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_actor ON audit (actor);
CREATE INDEX audit_node ON audit (cluster, node);

-- The last entry. It makes writers take turns and shows when entries were cut off the end.
CREATE TABLE audit_head (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    seq  BIGINT  NOT NULL,
    hash TEXT    NOT NULL
);
INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, '');

-- +goose Down
DROP TABLE audit_head;
DROP TABLE audit;
