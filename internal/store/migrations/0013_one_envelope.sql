-- +goose Up
-- Secrets of second factors are sealed as the credentials of clusters are. What was encrypted in the way of before cannot
-- be opened any more: recovery codes go on being good, and an admin takes the second factor away.
DELETE FROM second_factors;
ALTER TABLE second_factors RENAME COLUMN secret TO sealed;
ALTER TABLE second_factors ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
ALTER TABLE second_factors ADD COLUMN wrapped TEXT NOT NULL DEFAULT '';

-- +goose Down
DELETE FROM second_factors;
ALTER TABLE second_factors DROP COLUMN wrapped;
ALTER TABLE second_factors DROP COLUMN key_id;
ALTER TABLE second_factors RENAME COLUMN sealed TO secret;
