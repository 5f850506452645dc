-- +goose Up
-- The last entry that retention has removed: the chain of what is left continues it.
CREATE TABLE audit_anchor (
    id           INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    seq          BIGINT  NOT NULL,
    hash         TEXT    NOT NULL,
    at           BIGINT  NOT NULL,
    installation TEXT    NOT NULL,
    signing_key  TEXT    NOT NULL,
    signature    TEXT    NOT NULL
);

-- +goose Down
DROP TABLE audit_anchor;
