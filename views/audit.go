package views

import (
	"net/url"
	"strconv"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// auditValues are the parameters that say which entries are meant.
func auditValues(f fleet.AuditFilter) url.Values {
	v := url.Values{}
	for name, value := range map[string]string{
		"user": f.User, "cluster": f.Cluster, "node": f.Node, "action": f.Action, "outcome": f.Outcome, "batch": f.Batch,
		"session": f.Session, "since": minute(f.Since), "until": minute(f.Until),
	} {
		if value != "" {
			v.Set(name, value)
		}
	}
	return v
}

// auditURL is the page of the filter that begins beside an entry: param is before or after.
func auditURL(f fleet.AuditFilter, param string, seq int64) string {
	v := auditValues(f)
	if f.Limit > 0 {
		v.Set("limit", strconv.Itoa(f.Limit))
	}
	v.Set(param, strconv.FormatInt(seq, 10))
	return "/audit?" + v.Encode()
}

func auditSessionURL(session string) string {
	return "/audit?" + auditValues(fleet.AuditFilter{Session: session}).Encode()
}

func auditExportURL(f fleet.AuditFilter, format string) string {
	v := auditValues(f)
	v.Set("format", format)
	return "/api/v1/audit/export?" + v.Encode()
}

// minute is what an input for a time reads and writes, to the second where there are any.
func minute(t time.Time) string {
	switch t = t.UTC(); {
	case t.IsZero():
		return ""
	case t.Second() != 0:
		return t.Format("2006-01-02T15:04:05")
	}
	return t.Format("2006-01-02T15:04")
}

func auditOutcome(lang, o string) string {
	if key := "outcome." + o; Has(key) {
		return T(lang, key)
	}
	return o
}

// phaseName is the word for a phase, or the phase itself where there is none.
func phaseName(lang, phase string) string {
	if key := "phase." + phase; Has(key) {
		return T(lang, key)
	}
	return phase
}

// auditUID says which cluster it was, beyond its name.
func auditUID(lang, uid string) string {
	if uid == "" {
		return ""
	}
	return T(lang, "audit.uid", "Part", uid)
}
