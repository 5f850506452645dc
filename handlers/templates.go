package handlers

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// noTemplates stands in where no templates are kept.
type noTemplates struct{}

func (noTemplates) Templates(context.Context) ([]fleet.Template, error) { return nil, nil }

func (noTemplates) Template(context.Context, string, int) (fleet.Template, error) {
	return fleet.Template{}, fmt.Errorf("reading a template: %w", fleet.ErrNotFound)
}

func (noTemplates) SaveTemplate(context.Context, fleet.Caller, fleet.Template) (fleet.Template, error) {
	return fleet.Template{}, fmt.Errorf("keeping a template: %w", fleet.ErrUnavailable)
}

func (noTemplates) DeleteTemplate(context.Context, fleet.Caller, string) error {
	return fmt.Errorf("deleting a template: %w", fleet.ErrNotFound)
}

func unknownTemplate(id string) error {
	return say(fleet.ErrNotFound, "error.template_unknown", "there is no template {{.Part}}", "Part", id)
}

func (s *server) listTemplates(w http.ResponseWriter, r *http.Request) error {
	if err := onlyParams(r.URL.Query()); err != nil {
		return err
	}
	list, err := s.cfg.Templates.Templates(r.Context())
	if err != nil {
		return err
	}
	if list == nil {
		list = []fleet.Template{}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"items": list})
}

// getTemplate is the newest version, or the one that is named.
func (s *server) getTemplate(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if err := onlyParams(q, "version"); err != nil {
		return err
	}
	in := &input{values: q, taken: map[string]bool{}}
	version := in.number("version")
	if in.err != nil {
		return in.err
	}
	t, err := s.cfg.Templates.Template(r.Context(), id, version)
	if err != nil {
		return notFound(err, unknownTemplate(id))
	}
	return writeJSON(w, http.StatusOK, t)
}

func (s *server) templatesPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	q := r.URL.Query()
	if err := onlyParams(q, "edit"); err != nil {
		return err
	}
	p := views.TemplatesPage{Edit: q.Get("edit")}
	if p.Edit != "" {
		t, err := s.cfg.Templates.Template(r.Context(), p.Edit, 0)
		if err != nil {
			return notFound(err, unknownTemplate(p.Edit))
		}
		p.Asked = views.AskedOf(t)
	}
	return s.showTemplates(w, r, http.StatusOK, p)
}

func (s *server) showTemplates(w http.ResponseWriter, r *http.Request, status int, p views.TemplatesPage) error {
	list, err := s.cfg.Templates.Templates(r.Context())
	if err != nil {
		return err
	}
	p.Layout, p.Templates, p.CanEdit = s.layout(r, "templates.title", "templates"), list, callerOf(r).May(fleet.PermTemplates, "")
	p.Static = true
	p.Path = "/templates" // also when it answers a form
	if p.Edit != "" {
		p.Path += "?" + url.Values{"edit": {p.Edit}}.Encode()
	}
	return s.show(w, r, status, views.Templates(p))
}

// saveTemplate makes a template, or a new version of the one in the path.
func (s *server) saveTemplate(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	in, err := readInput(r)
	if err != nil {
		return err
	}
	t := templateOf(in)
	t.ID = id
	var saved fleet.Template
	if err = in.done(); err == nil {
		saved, err = s.cfg.Templates.SaveTemplate(r.Context(), callerOf(r), t)
		err = notFound(err, unknownTemplate(id))
	}
	if err != nil && accepts(r, "text/html") && !htmx(r) {
		return s.templateProblem(w, r, id, in, err)
	}
	switch {
	case err != nil:
		return err
	case accepts(r, "text/html"):
		http.Redirect(w, r, "/templates", http.StatusSeeOther)
		return nil
	case id == "":
		w.Header().Set("Location", "/api/v1/templates/"+url.PathEscape(saved.ID))
		return writeJSON(w, http.StatusCreated, saved)
	}
	return writeJSON(w, http.StatusOK, saved)
}

// templateProblem shows the form again with all that was typed.
func (s *server) templateProblem(w http.ResponseWriter, r *http.Request, id string, in *input, err error) error {
	lang := s.lang(r)
	a := answerFor(err, lang)
	if a.status == http.StatusNotFound {
		return err
	}
	stateOf(r).err = err
	p := views.TemplatesPage{Edit: id, Asked: views.Asked{}, Errors: map[string]string{}}
	for name, values := range in.values {
		p.Asked[name] = strings.Join(values, "\n")
	}
	if fieldProblems(err, lang, p.Errors); len(p.Errors) == 0 {
		if p.Errors[""] = a.message; a.message == "" {
			p.Errors[""] = views.Message(lang, "error."+a.name, nil, a.title)
		}
	}
	return s.showTemplates(w, r, a.status, p)
}

// templateOf reads a template. Values are lines of name=first,second, or in JSON an object of lists.
func templateOf(in *input) fleet.Template {
	t := fleet.Template{
		Name: strings.TrimSpace(in.text("name")), Note: strings.TrimSpace(in.text("note")), Version: in.number("version"),
		Labels: in.lines("labels"), Taints: in.lines("taints"), Values: map[string][]string{},
	}
	for _, line := range in.lines("values") {
		name, choices, ok := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			in.fail(fleet.Invalid("values", "%q is not of the form name=first,second", line))
			break
		}
		if _, twice := t.Values[name]; twice {
			in.fail(fleet.Invalid("values", "names %q twice", name))
		}
		t.Values[name] = choicesOf(strings.Split(choices, ","))
	}
	for _, full := range in.named("values.") {
		in.taken[full] = true
		t.Values[strings.TrimPrefix(full, "values.")] = choicesOf(in.values[full])
	}
	return t
}

func choicesOf(list []string) []string {
	out := make([]string, 0, len(list))
	for _, c := range list {
		if c = strings.TrimSpace(c); c != "" && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func (s *server) deleteTemplate(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	in, err := readInput(r)
	if err != nil {
		return err
	}
	if err := in.done(); err != nil {
		return err
	}
	if err := s.cfg.Templates.DeleteTemplate(r.Context(), callerOf(r), id); err != nil {
		return notFound(err, unknownTemplate(id))
	}
	if accepts(r, "text/html") {
		http.Redirect(w, r, "/templates", http.StatusSeeOther)
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
