//go:build !unix

package credentials_test

import "errors"

func mkfifo(string) error { return errors.ErrUnsupported }
