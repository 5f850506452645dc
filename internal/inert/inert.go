// Package inert takes the power out of text that others wrote, where it leaves for a terminal, a log or a spreadsheet. What
// nobody can see, or what would move a cursor, begin a line, turn the direction of reading or compute something, is
// written out as \uXXXX, the way JSON does. What can be seen stays as it is, in every script.
//
// HTML and JSON have their own rules, and are not the business of this package.
package inert

import (
	"encoding/csv"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// powerless tells whether a rune can be shown as it is: letters, marks, digits, signs and spaces. Controls, line ends, and
// the invisible characters that order, join and hide are not among them.
func powerless(r rune) bool {
	return r >= ' ' && r < 0x7f || r > 0x7f && unicode.IsGraphic(r) && !hidden(r)
}

// hidden are letters that show nothing: two names that differ by one of them look the same.
func hidden(r rune) bool {
	switch r {
	case '\u115f', '\u1160', '\u3164', '\uffa0', '\u034f', '\u17b4', '\u17b5':
		return true
	}
	return false
}

// Text makes s one line.
func Text(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !powerless(r) }) < 0 && utf8.ValidString(s) {
		return s
	}
	return string(appendText(nil, s, false))
}

// appendText appends s; bytes that are no text become U+FFFD. With lines, ends of lines stay.
func appendText(dst []byte, s string, lines bool) []byte {
	for _, r := range s {
		switch {
		case powerless(r), lines && r == '\n':
			dst = utf8.AppendRune(dst, r)
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\r':
			dst = append(dst, `\r`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		case r > 0xffff:
			r -= 0x10000
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
	}
	return dst
}

// writer is what Writer returns.
type writer struct{ to io.Writer }

// Writer passes lines of text on with everything but the ends of lines made inert. JSON stays JSON, with the same
// meaning. A character that is divided between two calls of Write is lost; whoever writes lines never does that.
func Writer(to io.Writer) io.Writer { return writer{to} }

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) {
	if n, err := w.to.Write(appendText(make([]byte, 0, len(p)+16), string(p), true)); err != nil {
		return min(n, len(p)), err
	}
	return len(p), nil
}

// Cell is s for a spreadsheet: Text, and after a ' if a program could take it for a formula. A ' that s begins with gets
// another one, so that the first ' of a cell is never part of its text.
func Cell(s string) string {
	cell := Text(s)
	first := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsSpace(r) && powerless(r) && r != utf8.RuneError })
	if first < 0 {
		first = len(s)
	}
	r, _ := utf8.DecodeRuneInString(s[first:])
	switch {
	case strings.HasPrefix(s, "'"), strings.ContainsRune("=+-@＝＋－＠﹢﹣﹦﹫−", r) && first < len(s), s != "" && strings.Contains("\t\r\n", s[:1]):
		return "'" + cell
	}
	return cell
}

// CSV writes rows of cells. Make it with NewCSV.
type CSV struct {
	to  *csv.Writer
	row []string
}

// NewCSV begins a file with its header.
func NewCSV(to io.Writer, header ...string) (*CSV, error) {
	c := &CSV{to: csv.NewWriter(to)}
	return c, c.Row(header...)
}

// Row writes one row, which stays in memory until Flush or until there is enough of it.
func (c *CSV) Row(cells ...string) error {
	c.row = c.row[:0]
	for _, cell := range cells {
		c.row = append(c.row, Cell(cell))
	}
	return c.to.Write(c.row)
}

// Flush passes on what was written. The error is the first there was.
func (c *CSV) Flush() error {
	c.to.Flush()
	return c.to.Error()
}
