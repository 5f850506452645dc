package inert_test

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/inert"
)

// hostile are texts that mean more than they show, somewhere.
var hostile = []string{
	"", "plain", "日本語 中文 кириллица عربى", "naïve café", "🙂", "a b", "a\u00a0b", "a\u3000b", `C:\temp\new`, `"quoted"`, `{"json":"\u0000"}`,
	"line\nbreak", "line\r\nbreak", "\r", "\n", "\t", "a\tb", "\v\f\b\a", "\x00", "nul\x00nul", "\x7f", "\x1b[31mred\x1b[0m", "\x1b]0;title\a",
	"\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x1b\\", "\x1b[2J\x1b[H", "\x1b[8mhidden", "\u009b31m", "\u0085next", "\u2028", "\u2029", "a\u2028{\"msg\":\"forged\"}",
	"\n{\"time\":\"2026-01-01T00:00:00Z\",\"level\":\"INFO\",\"msg\":\"forged\"}", "\r\ntime=now level=INFO msg=forged", "user=eve msg=\"ok\"",
	"\u202eevil", "\u202atext\u202c", "\u2066iso\u2069", "\u200elrm", "\u200frlm", "\u061c", "zero\u200bwidth", "join\u200dner", "\u2060", "soft\u00adhyphen",
	"\ufeffbom", "\ufeff=1+1", "\U000e0001tag\U000e0041", "\u115ffiller\u3164", "\ue000private", "\xff\xfe", "a\xc3", "\xed\xa0\x80", "\ufffd",
	"=1+1", "=cmd|'/C calc'!A0", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\u00a0=1", "\u3000=1", "＝1+1", "＋1", "－1", "＠x", "'=1", "'", "''quoted",
	"\u200b=1", "\u202e=1", "%0d%0aSet-Cookie: x", "<script>alert(1)</script>", "a,b;c\td", "\"=1\"", "\"\n=1", ";=1", "a\n=1", `\.`, "#REF!", "1e9", "001",
}

func FuzzText(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := inert.Text(s)
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsGraphic(r) }); i >= 0 || !utf8.ValidString(got) {
			t.Errorf("%q became %q", s, got)
		}
		if inert.Text(got) != got {
			t.Errorf("%q became %q and then %q", s, got, inert.Text(got))
		}
		// The way back, for what has no backslash of its own.
		if back, ok := unescaped(got); !strings.Contains(s, `\`) && (!ok || back != strings.ToValidUTF8(s, "\ufffd") && utf8.ValidString(s)) {
			t.Errorf("%q became %q, which says %q", s, got, back)
		}
	})
}

// unescaped reads s as JSON would.
func unescaped(s string) (out string, ok bool) {
	err := json.Unmarshal([]byte(`"`+strings.ReplaceAll(s, `"`, `\"`)+`"`), &out)
	return out, err == nil
}

// FuzzLog: one record is one line, valid, means what was logged, and shows nothing that could be taken for more.
func FuzzLog(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var out, text bytes.Buffer
		for _, h := range []slog.Handler{slog.NewJSONHandler(inert.Writer(&out), nil), slog.NewTextHandler(inert.Writer(&text), nil)} {
			log := slog.New(h).With("before", s).WithGroup("g")
			log.Info(s, "value", s, "nested", map[string]string{"k": s}, "err", errText(s)) //nolint:sloglint // the message is hostile too
		}
		for _, b := range [][]byte{out.Bytes(), text.Bytes()} {
			if n := bytes.Count(b, []byte("\n")); n != 1 || b[len(b)-1] != '\n' {
				t.Errorf("%q is logged in %d lines: %q", s, n, b)
			}
			if strings.ContainsFunc(strings.TrimSuffix(string(b), "\n"), func(r rune) bool { return !unicode.IsGraphic(r) }) {
				t.Errorf("%q is logged as %q", s, b)
			}
		}
		var rec struct {
			Msg, Before string
			G           struct {
				Value, Err string
				Nested     map[string]string
			}
		}
		if err := json.Unmarshal(out.Bytes(), &rec); err != nil {
			t.Fatalf("%q is logged as %q: %v", s, out.Bytes(), err)
		}
		want := string([]rune(s)) // each byte that is no text is one U+FFFD
		for _, got := range []string{rec.Msg, rec.Before, rec.G.Value, rec.G.Nested["k"], rec.G.Err} {
			if got != want {
				t.Errorf("%q is logged as %q", want, got)
			}
		}
	})
}

type errText string

func (e errText) Error() string { return string(e) }

// FuzzCSV: what is read is what was written, and no cell begins what a spreadsheet would compute.
func FuzzCSV(f *testing.F) {
	for i, s := range hostile {
		f.Add(s, hostile[len(hostile)-1-i])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		var out bytes.Buffer
		w, err := inert.NewCSV(&out, "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		rows := [][]string{{"a", "b"}, {a, b}, {b, a + b}}
		for _, row := range rows[1:] {
			if err := w.Row(row...); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		got, err := csv.NewReader(&out).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range got {
			for i, cell := range row {
				start := strings.TrimLeftFunc(cell, unicode.IsSpace)
				if start != "" && strings.ContainsAny(start[:1], "=+-@") {
					t.Errorf("%q is a formula", cell)
				}
				row[i] = strings.TrimPrefix(cell, "'") // ours
			}
		}
		for _, row := range rows {
			for i, cell := range row {
				row[i] = inert.Text(cell)
			}
		}
		if diff := cmp.Diff(rows, got); diff != "" {
			t.Errorf("(-written +read):\n%s", diff)
		}
	})
}

func TestCell(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "a": "a", "a=b": "a=b", "=1": "'=1", "+1": "'+1", "-1": "'-1", "@x": "'@x", " =1": "' =1", "\t=1": `'\t=1`, "\t": `'\t`, "\rx": `'\rx`, "\nx": `'\nx`,
		"\u00a0=1": "'\u00a0=1", "\u3000－1": "'\u3000－1", "＝1": "'＝1", "＋1": "'＋1", "＠x": "'＠x", "\ufeff=1": `'\ufeff=1`, "\u200b+1": `'\u200b+1`,
		"'x": "''x", "\x1b[1m": `\u001b[1m`, "\xff=1": "'\ufffd=1", "\u202ex": `\u202ex`, "\U000e0041": `\udb40\udc41`, "\u2028x": `\u2028x`, "  ": "  ",
	} {
		if got := inert.Cell(in); got != want {
			t.Errorf("Cell(%q) = %q, want %q", in, got, want)
		}
	}
}

// A failing terminal is told, not swallowed.
func TestWriter_Fails(t *testing.T) {
	t.Parallel()
	if n, err := inert.Writer(full{}).Write([]byte("a\x1b")); err == nil || n > 2 {
		t.Errorf("%d, %v", n, err)
	}
}

type full struct{}

func (full) Write(p []byte) (int, error) { return len(p) / 2, bytes.ErrTooLarge }
