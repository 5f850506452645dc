package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

var errNoVersion = errors.New("the server's version answer is not understood")

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

// isNil sees through the interface: fake discovery returns a typed nil.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	return r.Kind() == reflect.Pointer && r.IsNil()
}
