-- +goose Up
-- Which cluster an entry is about, whatever it was called then, and as whom it was done there. Entries from before have
-- neither, and the form of their hash says so.
ALTER TABLE audit ADD COLUMN cluster_uid TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN as_identity TEXT NOT NULL DEFAULT '';
-- A reading is by one of these, newest first: the number at the end spares the sorting.
DROP INDEX audit_actor;
DROP INDEX audit_node;
CREATE INDEX audit_actor ON audit (actor, seq);
CREATE INDEX audit_action ON audit (action, seq);
CREATE INDEX audit_node ON audit (cluster, node, seq);
-- Most entries have none of what these are about, and cost them nothing.
CREATE INDEX audit_cluster ON audit (cluster, seq) WHERE cluster <> '';
CREATE INDEX audit_node_name ON audit (node, seq) WHERE node <> '';
CREATE INDEX audit_batch ON audit (batch, seq) WHERE batch <> '';
CREATE INDEX audit_session ON audit (session, seq) WHERE session <> '';
CREATE INDEX audit_outcome ON audit (outcome, seq) WHERE outcome <> '';

-- +goose Down
DROP INDEX audit_outcome;
DROP INDEX audit_session;
DROP INDEX audit_batch;
DROP INDEX audit_node_name;
DROP INDEX audit_cluster;
DROP INDEX audit_node;
DROP INDEX audit_action;
DROP INDEX audit_actor;
CREATE INDEX audit_node ON audit (cluster, node);
CREATE INDEX audit_actor ON audit (actor);
ALTER TABLE audit DROP COLUMN as_identity;
ALTER TABLE audit DROP COLUMN cluster_uid;
