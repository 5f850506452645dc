-- +goose Up
CREATE TABLE batches (
    id              TEXT   NOT NULL PRIMARY KEY,
    action          TEXT   NOT NULL,
    operation       TEXT   NOT NULL,
    state           TEXT   NOT NULL CHECK (state IN ('queued', 'running', 'paused', 'interrupted', 'done')),
    outcome         TEXT   NOT NULL,
    created_by      TEXT   NOT NULL,
    created_by_id   TEXT   NOT NULL,
    role            TEXT   NOT NULL,
    session         TEXT   NOT NULL,
    via             TEXT   NOT NULL,
    addr            TEXT   NOT NULL,
    created_at      BIGINT NOT NULL,
    started_at      BIGINT NOT NULL,
    ended_at        BIGINT NOT NULL,
    cancelled_by    TEXT   NOT NULL,
    max_concurrent  BIGINT NOT NULL,
    max_failures    BIGINT NOT NULL,
    pause_between   BIGINT NOT NULL,
    note            TEXT   NOT NULL,
    version         BIGINT NOT NULL,
    -- NULL for none: two NULLs never stand against each other.
    idempotency_key TEXT,
    digest          TEXT   NOT NULL,
    -- Who works on it. Every step names the epoch, so that an owner whose lease was taken can change nothing.
    lease_holder    TEXT   NOT NULL,
    lease_epoch     BIGINT NOT NULL,
    lease_until     BIGINT NOT NULL,
    -- When an interrupted batch goes on by itself; 0 means that it waits for a person.
    resume_at       BIGINT NOT NULL,
    UNIQUE (created_by_id, idempotency_key)
);
CREATE INDEX batches_created ON batches (created_at);
CREATE INDEX batches_state ON batches (state);

CREATE TABLE batch_items (
    batch_id   TEXT   NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    seq        BIGINT NOT NULL,
    cluster    TEXT   NOT NULL,
    node       TEXT   NOT NULL,
    uid        TEXT   NOT NULL,
    state      TEXT   NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'skipped', 'cancelled')),
    code       TEXT   NOT NULL,
    error      TEXT   NOT NULL,
    changed    BIGINT NOT NULL,
    attempt    BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at   BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    PRIMARY KEY (batch_id, seq),
    UNIQUE (batch_id, cluster, node)
);
CREATE INDEX batch_items_version ON batch_items (batch_id, version);
CREATE INDEX batch_items_node ON batch_items (cluster, node);

-- A node is in at most one batch that is not done, and the primary key is what says so.
CREATE TABLE batch_holds (
    cluster  TEXT NOT NULL,
    node     TEXT NOT NULL,
    batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    PRIMARY KEY (cluster, node)
);
CREATE INDEX batch_holds_batch ON batch_holds (batch_id);

-- +goose Down
DROP TABLE batch_holds;
DROP TABLE batch_items;
DROP TABLE batches;
