-- +goose Up
-- Browsers in which somebody has signed in before, by the hash of their cookie. Failures of such a browser are counted by
-- that hash in signin_failures; name_hash is the counter of the name which they are counted instead of.
CREATE TABLE devices (
    device_hash TEXT   NOT NULL PRIMARY KEY,
    user_id     TEXT   NOT NULL REFERENCES users (id),
    epoch       BIGINT NOT NULL,
    name_hash   TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL
);
CREATE INDEX devices_user ON devices (user_id, created_at);
CREATE INDEX devices_expires ON devices (expires_at);

-- +goose Down
DROP TABLE devices;
