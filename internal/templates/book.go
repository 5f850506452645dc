package templates

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

// templatesMost is how many templates there may be at once.
const templatesMost = 200

// Store is where templates live. *store.Store implements it.
type Store interface {
	Templates(ctx context.Context) ([]fleet.Template, error)
	Template(ctx context.Context, id string, version int) (fleet.Template, error)
	// AddTemplate and ChangeTemplate tell names apart by the key. FieldError, ErrConflict for a version that is not the
	// one after the newest, ErrNotFound.
	AddTemplate(ctx context.Context, t fleet.Template, key string, most int, e fleet.Entry) error
	ChangeTemplate(ctx context.Context, t fleet.Template, key string, e fleet.Entry) error
	DeleteTemplate(ctx context.Context, id string, at time.Time, e fleet.Entry) error
}

// Audit takes what was refused. *audit.Log implements it.
type Audit interface {
	Denied(ctx context.Context, by fleet.Caller, action, detail string)
}

// Config is what a Book needs; every field is required.
type Config struct {
	Store Store
	Audit Audit
}

// Book is all templates. Make it with New.
type Book struct{ cfg Config }

// New returns the templates of a store.
func New(cfg Config) *Book { return &Book{cfg: cfg} }

// Templates lists the newest version of each, by name.
func (b *Book) Templates(ctx context.Context) ([]fleet.Template, error) {
	return b.cfg.Store.Templates(ctx)
}

// Template returns one version, the newest for 0. ErrNotFound. A version of a template that was deleted is still there.
func (b *Book) Template(ctx context.Context, id string, version int) (fleet.Template, error) {
	return b.cfg.Store.Template(ctx, id, version)
}

// SaveTemplate makes a template, or a new version of the one that the ID names; t.Version is the version that was
// changed, and ErrConflict if that is not the newest. Where nothing was changed there is no new version. FieldErrors
// (joined, if there are several), ErrForbidden.
func (b *Book) SaveTemplate(ctx context.Context, by fleet.Caller, t fleet.Template) (fleet.Template, error) {
	action := "template.change"
	if t.ID == "" {
		action = "template.add"
	}
	if err := b.permit(ctx, by, action, t.ID); err != nil {
		return fleet.Template{}, err
	}
	if err := b.check(&t); err != nil {
		return fleet.Template{}, err
	}
	t.CreatedBy, t.CreatedAt = by.Name, time.Now().UTC().Truncate(time.Microsecond)
	key := nameKey(t.Name)
	if t.ID == "" {
		t.ID, t.Version = strings.ToLower(rand.Text()), 1
		err := b.cfg.Store.AddTemplate(ctx, t, key, templatesMost, record(by, action, t))
		return saved(t, err)
	}
	was, err := b.cfg.Store.Template(ctx, t.ID, 0)
	if err != nil {
		return fleet.Template{}, err
	}
	if was.Version == t.Version && same(was, t) {
		return was, nil
	}
	t.Version++
	return saved(t, b.cfg.Store.ChangeTemplate(ctx, t, key, record(by, action, t)))
}

func saved(t fleet.Template, err error) (fleet.Template, error) {
	if err != nil {
		return fleet.Template{}, fmt.Errorf("saving a template: %w", err)
	}
	return t, nil
}

// DeleteTemplate takes it out of the list; its versions stay readable for what was done with them. ErrNotFound,
// ErrForbidden.
func (b *Book) DeleteTemplate(ctx context.Context, by fleet.Caller, id string) error {
	if err := b.permit(ctx, by, "template.delete", id); err != nil {
		return err
	}
	t, err := b.cfg.Store.Template(ctx, id, 0)
	if err != nil {
		return err
	}
	if err := b.cfg.Store.DeleteTemplate(ctx, id, time.Now(), record(by, "template.delete", t)); err != nil {
		return fmt.Errorf("deleting a template: %w", err)
	}
	return nil
}

// permit is asked in the handler too; here nothing goes past it.
func (b *Book) permit(ctx context.Context, by fleet.Caller, action, detail string) error {
	if by.May(fleet.PermTemplates, "") {
		return nil
	}
	b.cfg.Audit.Denied(ctx, by, action, detail)
	return fmt.Errorf("%s: %w", action, fleet.ErrForbidden)
}

// record is what the record says; the content of each version is kept beside it.
func record(by fleet.Caller, action string, t fleet.Template) fleet.Entry {
	return fleet.Entry{
		Actor: by.Name, Via: by.Via, Session: by.Session, Addr: by.Addr, Action: action, Phase: "event", Outcome: "succeeded",
		Detail: fmt.Sprintf("%s (%s), version %d", t.Name, t.ID, t.Version),
	}
}

// same tells whether two versions say the same.
func same(a, b fleet.Template) bool {
	return a.Name == b.Name && a.Note == b.Note && slices.Equal(a.Labels, b.Labels) && slices.Equal(a.Taints, b.Taints) &&
		maps.EqualFunc(a.Values, b.Values, slices.Equal)
}

// check makes a template one that may be kept, or says everything that is wrong with it.
func (b *Book) check(t *fleet.Template) error {
	err := errors.Join(checkName(t), checkNote(t), checkLines(t))
	if err != nil {
		return err
	}
	if err := checkValues(t); err != nil {
		return err
	}
	return b.checkGrammar(*t)
}

// checkGrammar asks for the grammar with every value that may be chosen, each at least once. What has no list is a value
// like any other here: what people give is looked at when it is applied.
func (b *Book) checkGrammar(t fleet.Template) error {
	rounds := 1
	for _, values := range t.Values {
		rounds = max(rounds, len(values))
	}
	for i := range rounds {
		chosen := make(map[string]string, len(t.Values))
		for name, values := range t.Values {
			chosen[name] = "x"
			if len(values) > 0 {
				chosen[name] = values[min(i, len(values)-1)]
			}
		}
		_, labelErr := marks.ParseLabels("labels", marks.Fill(t.Labels, chosen))
		_, taintErr := marks.ParseTaints("taints", marks.Fill(t.Taints, chosen))
		if err := errors.Join(labelErr, taintErr); err != nil {
			return err
		}
	}
	return nil
}
