-- +goose Up
-- By which identity each cluster is known: the uid of its namespace kube-system.
CREATE TABLE identities (
    cluster TEXT   NOT NULL PRIMARY KEY,
    uid     TEXT   NOT NULL,
    since   BIGINT NOT NULL
);

-- +goose Down
DROP TABLE identities;
