-- +goose Up
ALTER TABLE users ADD COLUMN kind TEXT NOT NULL DEFAULT 'local' CHECK (kind IN ('local', 'oidc', 'ldap'));
-- Who vouches for a person that is not local, and the name that never changes there.
ALTER TABLE users ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN subject TEXT NOT NULL DEFAULT '';
-- Since when a second factor is asked for; 0 for never.
ALTER TABLE users ADD COLUMN factor_at BIGINT NOT NULL DEFAULT 0;
-- Until when an invitation is good that was not used; 0 for none.
ALTER TABLE users ADD COLUMN invited_until BIGINT NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX users_identity ON users (kind, issuer, subject) WHERE kind <> 'local';

-- The secret is encrypted. Without a factor_at at the person it is one that was shown and not yet confirmed.
CREATE TABLE second_factors (
    user_id   TEXT   NOT NULL PRIMARY KEY REFERENCES users (id),
    secret    TEXT   NOT NULL,
    last_step BIGINT NOT NULL
);

CREATE TABLE recovery_codes (
    code_hash TEXT NOT NULL PRIMARY KEY,
    user_id   TEXT NOT NULL REFERENCES users (id)
);
CREATE INDEX recovery_codes_user ON recovery_codes (user_id);

-- Passwords that were right and wait for the code. They are no sessions, and nothing that reads sessions reads them.
CREATE TABLE half_sign_ins (
    token_hash TEXT   NOT NULL PRIMARY KEY,
    user_id    TEXT   NOT NULL REFERENCES users (id),
    epoch      BIGINT NOT NULL,
    replaces   TEXT   NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX half_sign_ins_expires ON half_sign_ins (expires_at);

CREATE TABLE invitations (
    user_id    TEXT   NOT NULL PRIMARY KEY REFERENCES users (id),
    code_hash  TEXT   NOT NULL UNIQUE,
    expires_at BIGINT NOT NULL
);

-- +goose Down
DROP TABLE invitations;
DROP TABLE half_sign_ins;
DROP TABLE recovery_codes;
DROP TABLE second_factors;
DROP INDEX users_identity;
ALTER TABLE users DROP COLUMN invited_until;
ALTER TABLE users DROP COLUMN factor_at;
ALTER TABLE users DROP COLUMN subject;
ALTER TABLE users DROP COLUMN issuer;
ALTER TABLE users DROP COLUMN kind;
