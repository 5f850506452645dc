-- +goose Up
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE users (
    id           TEXT   NOT NULL PRIMARY KEY,
    name         TEXT   NOT NULL UNIQUE,
    role         TEXT   NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    password     TEXT   NOT NULL,
    epoch        BIGINT NOT NULL,
    disabled_at  BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    last_sign_in BIGINT NOT NULL
);

-- A row that was revoked stays until its absolute deadline, so that nothing can make it good again.
CREATE TABLE sessions (
    token_hash  TEXT   NOT NULL PRIMARY KEY,
    user_id     TEXT   NOT NULL REFERENCES users (id),
    epoch       BIGINT NOT NULL,
    data        TEXT   NOT NULL,
    addr        TEXT   NOT NULL,
    user_agent  TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    seen_at     BIGINT NOT NULL,
    idle_at     BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL,
    revoked_at  BIGINT NOT NULL,
    revoked_for TEXT   NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_expires ON sessions (expires_at);

CREATE TABLE tokens (
    id          TEXT   NOT NULL PRIMARY KEY,
    token_hash  TEXT   NOT NULL UNIQUE,
    user_id     TEXT   NOT NULL REFERENCES users (id),
    name        TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    used_at     BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL,
    revoked_at  BIGINT NOT NULL,
    revoked_for TEXT   NOT NULL
);
CREATE INDEX tokens_user ON tokens (user_id);
CREATE INDEX tokens_expires ON tokens (expires_at);

CREATE TABLE signin_failures (
    scope         TEXT   NOT NULL,
    subject       TEXT   NOT NULL,
    failures      BIGINT NOT NULL,
    since         BIGINT NOT NULL,
    blocked_until BIGINT NOT NULL,
    PRIMARY KEY (scope, subject)
);

CREATE TABLE setup_code (
    id         INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    code_hash  TEXT    NOT NULL,
    expires_at BIGINT  NOT NULL
);

-- +goose Down
DROP TABLE setup_code;
DROP TABLE signin_failures;
DROP TABLE tokens;
DROP TABLE sessions;
DROP TABLE users;
DROP TABLE meta;
