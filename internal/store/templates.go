package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// templateRow is one version of a template.
type templateRow struct {
	ID        string `db:"template_id"`
	Key       string `db:"name_key"`
	Version   int    `db:"version"`
	Name      string `db:"name"`
	Note      string `db:"note"`
	Labels    string `db:"labels"`
	Taints    string `db:"taints"`
	Choices   string `db:"choices"`
	CreatedBy string `db:"created_by"`
	CreatedAt int64  `db:"created_at"`
}

const templateColumns = `v.template_id, COALESCE(t.name_key, '') AS name_key, v.version, v.name, v.note, v.labels, v.taints, v.choices, v.created_by, v.created_at
	FROM templates t JOIN template_versions v ON v.template_id = t.id`

func (r templateRow) template() (fleet.Template, error) {
	t := fleet.Template{
		ID: r.ID, Name: r.Name, Version: r.Version, Note: r.Note, CreatedBy: r.CreatedBy, CreatedAt: moment(r.CreatedAt),
	}
	if err := errors.Join(
		json.Unmarshal([]byte(r.Labels), &t.Labels),
		json.Unmarshal([]byte(r.Taints), &t.Taints),
		json.Unmarshal([]byte(r.Choices), &t.Values),
	); err != nil {
		return fleet.Template{}, fmt.Errorf("reading version %d of template %s: %w", r.Version, r.ID, err)
	}
	return t, nil
}

// Templates lists the newest version of each template that is not deleted, in the order of their keys.
func (s *Store) Templates(ctx context.Context) ([]fleet.Template, error) {
	var rows []templateRow
	if err := s.list(ctx, &rows, `SELECT `+templateColumns+` AND v.version = t.version WHERE t.deleted_at = 0`); err != nil {
		return nil, fmt.Errorf("listing templates: %w", err)
	}
	// Here, as the engines do not sort alike.
	slices.SortFunc(rows, func(a, b templateRow) int { return strings.Compare(a.Key, b.Key) })
	out := make([]fleet.Template, len(rows))
	for i, r := range rows {
		var err error
		if out[i], err = r.template(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Template returns a version of a template, also of one that is deleted; for 0 the newest, unless it is. ErrNotFound.
func (s *Store) Template(ctx context.Context, id string, version int) (fleet.Template, error) {
	query, args := `SELECT `+templateColumns+` AND v.version = t.version WHERE t.id = ? AND t.deleted_at = 0`, []any{id}
	if version != 0 {
		query, args = `SELECT `+templateColumns+` WHERE t.id = ? AND v.version = ?`, []any{id, version}
	}
	var row templateRow
	if err := s.get(ctx, &row, query, args...); err != nil {
		if errors.Is(err, fleet.ErrNotFound) {
			return fleet.Template{}, notFound("template", id)
		}
		return fleet.Template{}, fmt.Errorf("reading template %s: %w", id, err)
	}
	return row.template()
}

// AddTemplate writes the first version of a template, and the entry with it. A FieldError for the name if another one
// has the key or if there are as many as there may be.
func (s *Store) AddTemplate(ctx context.Context, t fleet.Template, key string, most int, e fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		var n int
		if err := tx.Get(&n, `SELECT COUNT(*) FROM templates WHERE deleted_at = 0`); err != nil {
			return err
		}
		if n >= most {
			return &fleet.FieldError{
				Field: "name", Message: fmt.Sprintf("there are %d templates already: delete one first", most),
				Key: "error.template_many", Args: map[string]string{"Part": strconv.Itoa(most)},
			}
		}
		if err := tx.freeKey(t.ID, key); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO templates (id, name_key, version, deleted_at) VALUES (?, ?, ?, 0)`, t.ID, key, t.Version); err != nil {
			return err
		}
		return tx.writeTemplate(t, e)
	})
}

// ChangeTemplate writes a version of a template, and the entry with it. ErrConflict if it is not the one after the
// newest, ErrNotFound if there is no such template; a FieldError as of AddTemplate.
func (s *Store) ChangeTemplate(ctx context.Context, t fleet.Template, key string, e fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		var newest int
		if err := tx.Get(&newest, `SELECT version FROM templates WHERE id = ? AND deleted_at = 0`, t.ID); err != nil {
			if errors.Is(err, fleet.ErrNotFound) {
				return notFound("template", t.ID)
			}
			return err
		}
		if t.Version != newest+1 {
			return fmt.Errorf("template %s has version %d by now: %w", t.ID, newest, fleet.ErrConflict)
		}
		if err := tx.freeKey(t.ID, key); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE templates SET name_key = ?, version = ? WHERE id = ?`, key, t.Version, t.ID); err != nil {
			return err
		}
		return tx.writeTemplate(t, e)
	})
}

// DeleteTemplate takes a template out of the list, with the entry; its versions stay. ErrNotFound.
func (s *Store) DeleteTemplate(ctx context.Context, id string, at time.Time, e fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE templates SET name_key = NULL, deleted_at = ? WHERE id = ? AND deleted_at = 0`, micros(at), id)
		switch {
		case err != nil:
			return err
		case n == 0:
			return notFound("template", id)
		}
		_, err = tx.AppendEntry(e)
		return err
	})
}

// freeKey looks whether another template has the key.
func (t *Tx) freeKey(id, key string) error {
	var taken int
	if err := t.Get(&taken, `SELECT COUNT(*) FROM templates WHERE name_key = ? AND id <> ?`, key, id); err != nil {
		return err
	}
	if taken > 0 {
		return &fleet.FieldError{Field: "name", Message: "is the name of another template", Key: "error.template_taken"}
	}
	return nil
}

func (t *Tx) writeTemplate(tpl fleet.Template, e fleet.Entry) error {
	labels, err1 := json.Marshal(nonNil(tpl.Labels))
	taints, err2 := json.Marshal(nonNil(tpl.Taints))
	values := tpl.Values
	if values == nil {
		values = map[string][]string{}
	}
	choices, err3 := json.Marshal(values)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("writing template %s: %w", tpl.ID, err)
	}
	if _, err := t.Exec(`INSERT INTO template_versions (template_id, version, name, note, labels, taints, choices, created_by, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, tpl.ID, tpl.Version, tpl.Name, tpl.Note, string(labels), string(taints), string(choices),
		tpl.CreatedBy, micros(tpl.CreatedAt)); err != nil {
		return err
	}
	_, err := t.AppendEntry(e)
	return err
}

// nonNil is an empty list where there is none: JSON tells them apart.
func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
