//go:build unix

package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/faultproxy"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// binEnv names the directory of initdb and postgres where they are somewhere unusual.
const binEnv = "KNM_TEST_POSTGRES"

const missing = `the tests of PostgreSQL need its server, which is not here: make postgres installs it where it can
(Debian, Ubuntu: apt-get install postgresql · Fedora: dnf install postgresql-server · macOS: brew install postgresql).
If it lives somewhere unusual, name the directory of initdb and postgres: KNM_TEST_POSTGRES=/path/to/bin`

// Password is that of the person whom Server.TLS connects as.
const Password = "hunter2"

// startLimit is what a server is given to start or to stop on a busy machine.
const startLimit = 2 * time.Minute

// Server is a PostgreSQL server of the tests: its data is thrown away at the end. It does not survive a loss of power,
// which makes it fast; it does survive being killed.
type Server struct {
	bin, dir string
	port     int
	attr     *syscall.SysProcAttr
	admin    *sql.DB

	mu   sync.Mutex // guards cmd, gone, made
	cmd  *exec.Cmd
	gone chan error
	made int
}

// shared is the server of the test binary; Runner ends it.
var shared struct {
	mu     sync.Mutex // guards server, err
	server *Server
	err    error
}

// Runner runs the tests of a binary and then ends the shared server.
type Runner struct{ M interface{ Run() int } }

// Run implements what goleak and TestMain ask for.
func (r Runner) Run() int {
	code := r.M.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server != nil {
		if err := shared.server.close(); err != nil {
			fmt.Fprintln(os.Stderr, "ending PostgreSQL:", err)
			code = max(code, 1)
		}
		shared.server = nil
	}
	return code
}

// Postgres is the one server of a test binary. It is started by the first test that asks; TestMain must run the tests
// with Runner. A machine without PostgreSQL fails the test.
func Postgres(tb testing.TB) *Server {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = newServer()
	}
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.server
}

// OwnPostgres is a server that the test may stop and start. It ends with the test.
func OwnPostgres(tb testing.TB) *Server {
	tb.Helper()
	s, err := newServer()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.close(); err != nil {
			tb.Errorf("ending PostgreSQL: %v", err)
		}
	})
	return s
}

// binaries finds the newest server that is installed.
func binaries() (string, error) {
	var dirs []string
	if dir := os.Getenv(binEnv); dir != "" {
		dirs = []string{dir}
	} else {
		for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				return "", err
			}
			dirs = append(found, dirs...)
		}
		slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
		if path, err := exec.LookPath("initdb"); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New(missing)
}

// version is the number in the name of a directory.
func version(dir string) int {
	digits := strings.FieldsFunc(dir, func(r rune) bool { return r < '0' || r > '9' })
	if len(digits) == 0 {
		return 0
	}
	n, err := strconv.Atoi(digits[0])
	if err != nil {
		return 0
	}
	return n
}

func newServer() (_ *Server, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "knm-postgres-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir, attr: attributes()}
	defer func() {
		if err != nil {
			err = fmt.Errorf("starting PostgreSQL of %s: %w", bin, errors.Join(err, s.close()))
		}
	}()
	if err := s.unprivileged(); err != nil {
		return nil, err
	}
	if err := s.init(); err != nil {
		return nil, err
	}
	if err := s.start(); err != nil {
		return nil, err
	}
	if s.admin, err = sql.Open("pgx", s.URL("postgres")); err != nil {
		return nil, err
	}
	s.admin.SetMaxOpenConns(4)
	// A template with the tables in it makes a database for each test in a few milliseconds.
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if _, err := s.admin.ExecContext(ctx, `CREATE DATABASE migrated`); err != nil {
		return nil, err
	}
	migrated, err := store.Open(ctx, store.Config{URL: s.URL("migrated"), Timeout: time.Minute})
	if err != nil {
		return nil, err
	}
	return s, migrated.Close()
}

// unprivileged makes the server run as somebody else where the tests run as root, which it refuses.
func (s *Server) unprivileged() error {
	if os.Getuid() != 0 {
		return nil
	}
	var who *user.User
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err == nil {
			who = u
			break
		}
	}
	if who == nil {
		return errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return err
	}
	s.attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, int(uid), int(gid))
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// init makes the data directory: anybody may connect through the socket, and over TLS with the password.
func (s *Server) init() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	password := filepath.Join(s.dir, "password")
	if err := s.write(password, []byte(Password)); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, filepath.Join(s.bin, "initdb"), "-D", s.data(), "-U", "knm", "-E", "UTF8", "--locale=C",
		"--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile="+password, "--no-sync")
	c.SysProcAttr, c.Dir, c.Env = s.attr, s.dir, []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return err
	}
	if err := s.certificate(); err != nil {
		return err
	}
	return s.write(filepath.Join(s.data(), "postgresql.auto.conf"), fmt.Appendf(nil, `
listen_addresses = '127.0.0.1'
port = %d
unix_socket_directories = '%s'
max_connections = 300
fsync = off
full_page_writes = off
ssl = on
ssl_cert_file = '%s'
ssl_key_file = '%s'
`, s.port, s.dir, s.CA(), filepath.Join(s.dir, "key.pem")))
}

// CA is the file with the certificate that signed the server's: its own.
func (s *Server) CA() string { return filepath.Join(s.dir, "cert.pem") }

func (s *Server) certificate() error {
	cert, key, err := faultproxy.SelfSigned("PostgreSQL of the tests")
	if err != nil {
		return err
	}
	return errors.Join(
		s.write(s.CA(), cert),
		s.write(filepath.Join(s.dir, "key.pem"), key),
	)
}

// write makes a file that belongs to whom the server runs as.
func (s *Server) write(path string, b []byte) error {
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	if c := s.attr.Credential; c != nil {
		return os.Chown(path, int(c.Uid), int(c.Gid))
	}
	return nil
}

// start runs the server and returns when it answers.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()                                  // the server has its own
	c := exec.Command(filepath.Join(s.bin, "postgres"), "-D", s.data()) //nolint:noctx // it lives until it is stopped
	c.SysProcAttr, c.Dir, c.Stdout, c.Stderr = s.attr, s.dir, log, log
	c.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	if err := c.Start(); err != nil {
		return err
	}
	s.cmd, s.gone = c, make(chan error, 1)
	gone := s.gone
	go func() { gone <- c.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	db, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // it was only asked whether it is there
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("it does not answer: %w", err), s.words())
		case end := <-gone:
			s.cmd = nil
			return errors.Join(fmt.Errorf("it ended: %w", end), s.words())
		}
	}
}

// words is what the server said last, as an error.
func (s *Server) words() error {
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	return errors.New(string(b[max(0, len(b)-2000):]))
}

// stop sends the server a signal and waits for its end.
func (s *Server) stop(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	var err error
	select {
	case status := <-s.gone:
		_ = status // whatever it is: it was told to end
	case <-timer.C:
		err = errors.Join(errors.New("it does not end"), s.words(), s.cmd.Process.Kill(), <-s.gone)
	}
	s.cmd = nil
	return err
}

func (s *Server) close() error {
	var errs []error
	if s.admin != nil {
		errs = append(errs, s.admin.Close())
	}
	return errors.Join(append(errs, s.stop(syscall.SIGINT), os.RemoveAll(s.dir))...)
}

// Crash ends the server as a crash does: sessions end in the middle of whatever they were doing.
func (s *Server) Crash(tb testing.TB) {
	tb.Helper()
	if err := s.stop(syscall.SIGQUIT); err != nil {
		tb.Fatalf("stopping PostgreSQL: %v", err)
	}
}

// Start starts a server that was stopped.
func (s *Server) Start(tb testing.TB) {
	tb.Helper()
	if err := s.start(); err != nil {
		tb.Fatalf("starting PostgreSQL: %v", err)
	}
}

// URL is the address of a database through the socket, without a password.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User("knm"), Path: "/" + database}
	u.RawQuery = url.Values{"host": {s.dir}, "port": {strconv.Itoa(s.port)}}.Encode()
	return u.String()
}

// Addr is the host and port of the server; over it, a password is asked for.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// TCP is the address of a database of Database at a host and port, with password and query.
func (s *Server) TCP(database, addr, password, query string) string {
	u, err := url.Parse(database)
	if err != nil {
		panic(err)
	}
	return (&url.URL{Scheme: "postgres", User: url.UserPassword("knm", password), Host: addr, Path: u.Path, RawQuery: query}).String()
}

// Database makes a database with the tables in it and answers its address. It is dropped with the test.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	return s.database(tb, " TEMPLATE migrated")
}

// Empty makes a database without anything in it, with these options of CREATE DATABASE.
func (s *Server) Empty(tb testing.TB, options string) string {
	tb.Helper()
	return s.database(tb, " "+options)
}

func (s *Server) database(tb testing.TB, how string) string {
	tb.Helper()
	s.mu.Lock()
	s.made++
	name := fmt.Sprintf("test%d", s.made)
	s.mu.Unlock()
	do := func(statement string) {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		if _, err := s.admin.ExecContext(ctx, statement); err != nil {
			tb.Errorf("%s: %v", statement, err)
		}
	}
	do(`CREATE DATABASE ` + name + how)
	if tb.Failed() {
		tb.FailNow()
	}
	tb.Cleanup(func() { do(`DROP DATABASE ` + name + ` WITH (FORCE)`) })
	return s.URL(name)
}

// SQL connects somebody who is not the store to a database.
func SQL(tb testing.TB, address string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("pgx", address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return db
}
