-- +goose Up
ALTER TABLE batches ADD COLUMN paused_by TEXT NOT NULL DEFAULT '';
ALTER TABLE batches ADD COLUMN parent TEXT NOT NULL DEFAULT '';
ALTER TABLE batches ADD COLUMN per_cluster BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN per_zone BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN max_unavailable BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN canary BIGINT NOT NULL DEFAULT 0;
-- Whether a person has gone on after the canary.
ALTER TABLE batches ADD COLUMN passed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN node_order TEXT NOT NULL DEFAULT 'given';
-- Whether the last owner gave its lease back: if not, a process died over the batch.
ALTER TABLE batches ADD COLUMN lease_clean BIGINT NOT NULL DEFAULT 1;
-- How many events the batch has.
ALTER TABLE batches ADD COLUMN events BIGINT NOT NULL DEFAULT 0;
CREATE INDEX batches_parent ON batches (parent);

ALTER TABLE batch_items ADD COLUMN zone TEXT NOT NULL DEFAULT '';
ALTER TABLE batch_items ADD COLUMN control BIGINT NOT NULL DEFAULT 0;
-- JSON, gzip from a certain size on; NULL for nothing. SQLite keeps bytes whatever a column is called.
ALTER TABLE batch_items ADD COLUMN edits BYTEA;
ALTER TABLE batch_items ADD COLUMN undo BYTEA;
ALTER TABLE batch_items ADD COLUMN drain BYTEA;
-- The mark of the last events of the item's attempt.
ALTER TABLE batch_items ADD COLUMN told BIGINT NOT NULL DEFAULT 0;
-- Who asked to leave it out.
ALTER TABLE batch_items ADD COLUMN skip_by TEXT NOT NULL DEFAULT '';

-- What a batch was made by.
CREATE TABLE batch_plans (
    batch_id TEXT  NOT NULL PRIMARY KEY REFERENCES batches (id) ON DELETE CASCADE,
    plan     BYTEA NOT NULL
);

-- The log of a batch: a row holds the events that were written together, of one item. seq is that of the last of them.
CREATE TABLE batch_events (
    batch_id TEXT   NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    seq      BIGINT NOT NULL,
    item     BIGINT NOT NULL,
    n        BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    events   BYTEA  NOT NULL,
    PRIMARY KEY (batch_id, seq)
);

-- +goose Down
DROP TABLE batch_events;
DROP TABLE batch_plans;
DROP INDEX batches_parent;
ALTER TABLE batch_items DROP COLUMN skip_by;
ALTER TABLE batch_items DROP COLUMN told;
ALTER TABLE batch_items DROP COLUMN drain;
ALTER TABLE batch_items DROP COLUMN undo;
ALTER TABLE batch_items DROP COLUMN edits;
ALTER TABLE batch_items DROP COLUMN control;
ALTER TABLE batch_items DROP COLUMN zone;
ALTER TABLE batches DROP COLUMN events;
ALTER TABLE batches DROP COLUMN lease_clean;
ALTER TABLE batches DROP COLUMN node_order;
ALTER TABLE batches DROP COLUMN passed;
ALTER TABLE batches DROP COLUMN canary;
ALTER TABLE batches DROP COLUMN max_unavailable;
ALTER TABLE batches DROP COLUMN per_zone;
ALTER TABLE batches DROP COLUMN per_cluster;
ALTER TABLE batches DROP COLUMN parent;
ALTER TABLE batches DROP COLUMN paused_by;
