package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/client-go/kubernetes"
)

var errNoVersion = errors.New("the server's version answer is not understood")

// Version asks the server for its version; it is the cheapest question that needs the whole way to the server.
func Version(ctx context.Context, c kubernetes.Interface) (string, error) {
	raw := c.Discovery().RESTClient()
	if raw == nil { // a fake client has none
		v, err := c.Discovery().ServerVersion()
		if err != nil {
			return "", Error(err)
		}
		return v.GitVersion, nil
	}
	body, err := raw.Get().MaxRetries(0).AbsPath("/version").DoRaw(ctx)
	if err != nil {
		return "", Error(err)
	}
	return parseVersion(body)
}

func parseVersion(body []byte) (string, error) {
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return "", fmt.Errorf("%w: %w", errNoVersion, err)
	}
	if v.GitVersion == "" {
		return "", errNoVersion
	}
	return v.GitVersion, nil
}
