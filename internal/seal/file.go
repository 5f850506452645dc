package seal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Create makes a file with one new key, readable by its owner alone. It is written aside and linked into place, so that
// nobody ever reads half a key; fs.ErrExist if there is one.
func Create(file string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("making a key: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.WriteString(NewKey().Reveal() + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), file)
}
