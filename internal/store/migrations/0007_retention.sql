-- +goose Up
CREATE INDEX batches_ended ON batches (ended_at);

-- +goose Down
DROP INDEX batches_ended;
