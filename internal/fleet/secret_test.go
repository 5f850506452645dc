package fleet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// TestSecret_NeverShows: however a secret is written, alone or inside of something, it is not to be seen.
func TestSecret_NeverShows(t *testing.T) {
	t.Parallel()
	const canary = "canary-of-a-secret"
	spec := ClusterSpec{Name: "prod", Kubeconfig: canary}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewJSONHandler(&log, nil), slog.NewTextHandler(&log, nil)} {
		slog.New(h).Info("x", "secret", Secret(canary), "spec", spec, "any", slog.AnyValue(Secret(canary)), "list", []Secret{canary})
	}
	text := []string{log.String()}
	for _, v := range []any{Secret(canary), new(Secret(canary)), spec, &spec, []Secret{canary}, map[string]Secret{"a": canary}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			text = append(text, fmt.Sprintf(verb, v))
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, string(b), fmt.Errorf("with %v: %w", v, ErrInvalid).Error())
	}
	for _, s := range text {
		if strings.Contains(s, canary) {
			t.Errorf("shown: %s", s)
		}
	}
	if Secret(canary).Reveal() != canary || Secret("").String() != "" {
		t.Error("the secret is lost, or its absence is not to be seen")
	}
}
