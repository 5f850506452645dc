package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// hostileText is 64 texts that would be obeyed by a terminal, end a line, or read as something else than they are.
func hostileText() (out []string) {
	for _, what := range []string{
		"\x1b[2J", "\x1b]0;owned\x07", "\x1b[31m", "\u009b1m", "\r", "\n", "\r\n", "\t", "\x00", "\x08\x08", "\x7f", "\u0085", "\u2028", "\u2029", "\u202e",
		"\u2066", "\u200f", "\u200b", "\ufeff", "\xff", "\U000e0041",
	} {
		out = append(out, what+"x", "x"+what+"forged line", "{\"level\":\"ERROR\"}"+what)
	}
	return append(out, "NAME  ROLE  STATE")
}

// checkShown fails unless text is so many lines in which nothing is hidden.
func checkShown(t *testing.T, what, text string, lines int) {
	t.Helper()
	if n := strings.Count(text, "\n"); n != lines {
		t.Errorf("%s: %d lines, want %d: %q", what, n, lines, text)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }); i >= 0 {
		t.Errorf("%s: something that cannot be seen at %d: %q", what, i, text)
	}
}

// What comes out of every command is lines that show all there is, whatever names and answers hold.
func TestExecute_HostileText(t *testing.T) {
	t.Parallel()
	hostile := hostileText()
	db := config.Database{Dir: t.TempDir()}
	s, err := store.Open(t.Context(), store.Config{Dir: db.Dir, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Tx(t.Context(), func(tx *store.Tx) error {
		for _, text := range hostile {
			if _, err := tx.AppendEntry(fleet.Entry{Actor: text, Action: text, Detail: text}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range hostile {
		who := fleet.Account{User: fleet.User{ID: strconv.Itoa(i), Name: text + strconv.Itoa(i), Role: fleet.RoleViewer, Kind: fleet.PersonLocal, Epoch: 1, CreatedAt: time.Now()}}
		if err := s.AddUser(t.Context(), who, fleet.Entry{Action: "user.add"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	run := func(cfg config.Config, in string) (out string, err error) {
		var b, errs bytes.Buffer
		err = Execute(t.Context(), cfg, "test", Stdio{In: strings.NewReader(in), Out: &b, Err: &errs})
		checkShown(t, string(cfg.Command), errs.String(), 0)
		return b.String(), err
	}
	out, err := run(config.Config{Command: config.CommandUserList, User: config.User{Database: db}}, "")
	if err != nil {
		t.Fatal(err)
	}
	checkShown(t, "user list", out, 1+len(hostile))
	for i, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
		if !strings.Contains(line, "  viewer  enabled  ") {
			t.Errorf("line %d is %q", i, line)
		}
	}
	verify := config.Config{Command: config.CommandAuditVerify, Audit: config.Audit{Database: db}}
	if out, err = run(verify, ""); err != nil {
		t.Fatal(err)
	}
	checkShown(t, "audit verify", out, 1)
	verify.Audit.Heads, verify.Audit.Key = "-", "\x1b[2J\u202e"
	head, err := json.Marshal(fleet.AuditHead{Seq: 1, Hash: hostile[0], Key: hostile[1], Signature: hostile[2], Installation: hostile[3]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = run(verify, string(head)); err == nil {
		t.Error("a hostile head is good")
	}
	var told bytes.Buffer
	fmt.Fprintln(Stdio{Err: &told}.Inert().Err, err) // as main tells it
	checkShown(t, "a failure", told.String(), 1)
}

func TestWatch_HostileText(t *testing.T) {
	t.Parallel()
	hostile := hostileText()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, text := range hostile {
			b, err := json.Marshal(map[string]string{"reason": text})
			if err != nil {
				t.Error(err)
			}
			fmt.Fprintf(w, "event: node_update\ndata: %s\n\n", b)
		}
		fmt.Fprint(w, "event: node_update\ndata: two\ndata: lines \x1b[2J\u202e\n\nevent: synced\ndata: {}\n\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
	}))
	defer ts.Close()
	var out bytes.Buffer
	to := Stdio{Out: writerFunc(func(p []byte) (int, error) {
		if string(p) == "{}\n" {
			defer cancel()
		}
		return out.Write(p)
	})}
	if err := Execute(ctx, config.Config{Command: config.CommandWatch, Watch: watchConfig(t, ts.URL)}, "test", to); err != nil {
		t.Fatal(err)
	}
	checkShown(t, "watch", out.String(), len(hostile)+2)
	for i, line := range strings.Split(out.String(), "\n")[:len(hostile)] {
		var got struct{ Reason string }
		if err := json.Unmarshal([]byte(line), &got); err != nil || got.Reason != strings.ToValidUTF8(hostile[i], "\ufffd") {
			t.Errorf("%q is told as %s, %v", hostile[i], line, err)
		}
	}
}

// What the server logs goes the same way, in both forms.
func TestServe_HostileLog(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		log := config.Serve{LogFormat: format}.Logger(Stdio{Out: io.Discard, Err: &out}.Inert().Err)
		hostile := hostileText()
		for _, text := range hostile {
			log.With("user", text).Warn("request", "path", text, "err", &os.PathError{Op: "open", Path: filepath.Join("x", text), Err: os.ErrNotExist})
		}
		checkShown(t, format, out.String(), len(hostile))
		for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			var rec struct{ Level, User, Path string }
			if err := json.Unmarshal([]byte(line), &rec); format == "json" && (err != nil || rec.Level != "WARN" || rec.Path != strings.ToValidUTF8(hostile[i], "\ufffd")) {
				t.Errorf("%q is logged as %s: %v", hostile[i], line, err)
			}
		}
	}
}
