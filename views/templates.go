package views

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TemplatesPage lists the templates, and holds the form that makes one or a new version of one.
type TemplatesPage struct {
	Layout
	Templates []fleet.Template
	CanEdit   bool
	Edit      string // id of the one that is being changed, "" for a new one
	Asked     Asked
	Errors    map[string]string
}

// AskedOf is a template as its form shows it.
func AskedOf(t fleet.Template) Asked {
	var values []string
	for _, name := range sortedKeys(t.Values) {
		values = append(values, name+"="+strings.Join(t.Values[name], ","))
	}
	return Asked{
		"name": t.Name, "note": t.Note, "version": strconv.Itoa(t.Version), "labels": strings.Join(t.Labels, "\n"), "taints": strings.Join(t.Taints, "\n"),
		"values": strings.Join(values, "\n"),
	}
}

func templateURL(id string) string {
	if id == "" {
		return "/api/v1/templates"
	}
	return "/api/v1/templates/" + url.PathEscape(id)
}

func templateEditURL(id string) string {
	return "/templates?" + url.Values{"edit": {id}}.Encode()
}

// plan is the page as the fields of plans take it: their form is the same.
func (p TemplatesPage) plan() PlanPage {
	return PlanPage{Layout: p.Layout, Asked: p.Asked, Errors: p.Errors}
}
