-- +goose Up
CREATE TABLE templates (
    id         TEXT   NOT NULL PRIMARY KEY,
    -- What its name is told apart by. NULL once it is deleted: the name is free, and two NULLs never stand against each
    -- other.
    name_key   TEXT   UNIQUE,
    version    BIGINT NOT NULL,
    deleted_at BIGINT NOT NULL
);

-- A version is never changed and never deleted: batches say which one they applied.
CREATE TABLE template_versions (
    template_id TEXT   NOT NULL REFERENCES templates (id),
    version     BIGINT NOT NULL,
    name        TEXT   NOT NULL,
    note        TEXT   NOT NULL,
    labels      TEXT   NOT NULL,
    taints      TEXT   NOT NULL,
    choices     TEXT   NOT NULL,
    created_by  TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (template_id, version)
);

-- +goose Down
DROP TABLE template_versions;
DROP TABLE templates;
