-- +goose Up
-- The role has a fourth value. SQLite cannot change a check, but it can drop the column with it.
ALTER TABLE users ADD COLUMN role_everywhere TEXT NOT NULL DEFAULT 'none'
    CHECK (role_everywhere IN ('none', 'viewer', 'operator', 'admin'));
UPDATE users SET role_everywhere = role;
ALTER TABLE users DROP COLUMN role;
ALTER TABLE users RENAME COLUMN role_everywhere TO role;
-- What a person may do in some clusters, and the groups that a provider vouched for: lists as JSON.
ALTER TABLE users ADD COLUMN grants TEXT NOT NULL DEFAULT '[]';
ALTER TABLE users ADD COLUMN groups_there TEXT NOT NULL DEFAULT '[]';
-- What a token may do at most; empty for no limit.
ALTER TABLE tokens ADD COLUMN role TEXT NOT NULL DEFAULT '' CHECK (role IN ('', 'viewer', 'operator', 'admin'));
ALTER TABLE tokens ADD COLUMN scope TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE tokens DROP COLUMN scope;
ALTER TABLE tokens DROP COLUMN role;
ALTER TABLE users DROP COLUMN groups_there;
ALTER TABLE users DROP COLUMN grants;
-- Somebody with a role nowhere is nobody to the schema before.
UPDATE users SET disabled_at = created_at, role = 'viewer' WHERE role = 'none';
ALTER TABLE users ADD COLUMN role_before TEXT NOT NULL DEFAULT 'viewer' CHECK (role_before IN ('viewer', 'operator', 'admin'));
UPDATE users SET role_before = role;
ALTER TABLE users DROP COLUMN role;
ALTER TABLE users RENAME COLUMN role_before TO role;
