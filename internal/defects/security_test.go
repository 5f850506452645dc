package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSecurityDoc: every test that docs/security.md names is there, every threat and every failure of others has one, and
// the threats are numbered without a gap.
func TestSecurityDoc(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(root + "/docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)\\w+)`")
	found := map[string]map[string]bool{}
	for _, m := range named.FindAllStringSubmatch(string(text), -1) {
		if found[m[1]] == nil {
			found[m[1]] = testsOf(t, m[1])
		}
		if !found[m[1]][m[2]] {
			t.Errorf("there is no %s in %s", m[2], m[1])
		}
	}
	threats, peers := table(t, string(text), "Threats and the tests"), table(t, string(text), "What went wrong elsewhere")
	for i, row := range threats {
		id := fmt.Sprintf("T%d", i+1)
		if row[0] != id {
			t.Fatalf("row %d is about %s", i+1, row[0])
		}
		if !named.MatchString(row[3]) {
			t.Errorf("%s: no test", id)
		}
	}
	if len(threats) != 43 {
		t.Errorf("%d threats, want 43", len(threats))
	}
	if len(peers) < 24 {
		t.Errorf("%d failures of others are fewer than we know of", len(peers))
	}
	for _, row := range peers {
		if !named.MatchString(row[1]) {
			t.Errorf("%s: no test", row[0])
		}
	}
	// What a defect is about is in the table.
	for _, d := range defects {
		for id := range strings.SplitSeq(d.trust, ",") {
			if strings.HasPrefix(id, "T") && !slices.ContainsFunc(threats, func(row []string) bool { return row[0] == id }) {
				t.Errorf("%s is about %s, which is no threat of the table", d.id, id)
			}
		}
	}
}

// table is the first table below a heading, without its head.
func table(t *testing.T, text, heading string) (rows [][]string) {
	t.Helper()
	_, text, ok := strings.Cut(text, "### "+heading)
	if !ok {
		t.Fatalf("there is no %q", heading)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "|"):
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		case len(rows) > 0:
			return rows[2:]
		}
	}
	return nil
}
