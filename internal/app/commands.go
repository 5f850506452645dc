package app

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	osuser "os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"k8s.io/klog/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/auth"
	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/inert"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// Stdio is the terminal of a command.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Inert is the same terminal for text that others may have written: what it is told to obey, it shows. Log records and
// JSON mean what they meant.
func (s Stdio) Inert() Stdio {
	return Stdio{In: s.In, Out: inert.Writer(s.Out), Err: inert.Writer(s.Err)}
}

// Execute does what the command line asks for. ctx ends with a signal.
func Execute(ctx context.Context, cfg config.Config, version string, std Stdio) error {
	std = std.Inert()
	switch cfg.Command {
	case config.CommandServe:
		logger := cfg.Serve.Logger(std.Err)
		// klog has one logger for the process, which its own calls read from the first client on without a lock: it is
		// set here, where there is one server in a process, and before there is a client.
		klog.SetSlogLogger(logger.With("component", "client-go"))
		if err := boundMemory(logger); err != nil {
			logger.Warn("memory is not bounded by that of the container", "err", err)
		}
		a, err := New(ctx, cfg.Serve, Options{Version: version, Logger: logger, Notice: std.Out})
		if err != nil {
			return err
		}
		return a.Run(ctx)
	case config.CommandWatch:
		return Watch(ctx, cfg.Watch, std.Out)
	case config.CommandVersion:
		_, err := fmt.Fprintln(std.Out, version)
		return err
	case config.CommandKeyNew:
		_, err := fmt.Fprintln(std.Out, seal.NewKey().Reveal())
		return err
	case config.CommandKeyRotate:
		return rotate(ctx, cfg.Rotate, std)
	case config.CommandAuditVerify:
		return beside(ctx, cfg.Audit.Database, std, func(_ *auth.Service, log *audit.Log) error {
			n, err := log.Verify(ctx)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(std.Out, "%d entries, the chain is whole\n", n); err != nil || cfg.Audit.Heads == "" {
				return err
			}
			return heads(ctx, cfg.Audit, log, std)
		})
	default:
		return beside(ctx, cfg.User.Database, std, func(people *auth.Service, _ *audit.Log) error {
			return user(ctx, cfg.Command, cfg.User, people, std)
		})
	}
}

// heads checks the record against heads that were kept elsewhere.
func heads(ctx context.Context, cfg config.Audit, log *audit.Log, std Stdio) (err error) {
	in := std.In
	if cfg.Heads != "-" {
		f, err := os.Open(cfg.Heads)
		if err != nil {
			return fmt.Errorf("opening the heads: %w", err)
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	all, err := audit.ReadHeads(in)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return errors.New("there are no signed heads in it")
	}
	good, older, err := log.VerifyHeads(ctx, all, cfg.Key)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.Out, "%d signed heads fit, %d are of entries that retention has removed; the key is %s\n", good, older, inert.Text(all[len(all)-1].Key))
	return err
}

// rotate wraps every secret in the database with the first of the keys, beside a running server or without one. What it did
// stays done if it is stopped, and running it again goes on from there.
func rotate(ctx context.Context, cfg config.Rotate, std Stdio) (err error) {
	keys, err := readKeys(cfg.Key)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(std.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := store.Open(ctx, store.Config{Dir: cfg.Dir, URL: cfg.URL.Reveal(), Logger: logger})
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	log := audit.New(s, logger)
	e := audit.By(onHost())
	e.Action, e.Phase, e.Detail = "key.rotate", "intent", "to key "+keys.Current()
	if _, err := log.Append(ctx, e); err != nil {
		return err
	}
	done, err := seal.Rotate(ctx, s, keys)
	if err == nil && len(done.Unreadable) > 0 {
		names := make([]string, len(done.Unreadable))
		for i, r := range done.Unreadable {
			names[i] = r.String() + " (key " + r.Key + ")"
		}
		err = fmt.Errorf("these do not open under the keys that were given: %s: %w", strings.Join(names, ", "), seal.ErrUnreadable)
	}
	e.Phase, e.Outcome, e.Detail = "result", "succeeded", fmt.Sprintf("to key %s: %d", keys.Current(), done.Rewrapped)
	if err != nil {
		e.Outcome = "failed"
	}
	if _, lost := log.Append(context.WithoutCancel(ctx), e); lost != nil {
		return errors.Join(err, lost)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.Out, "%d secrets rewrapped, all are under key %s now: older keys are not needed any more\n", done.Rewrapped, keys.Current())
	return err
}

// boundMemory makes the collector work harder before the container's limit would end the process. A GOMEMLIMIT in the
// environment wins; without either there is no bound.
func boundMemory(logger *slog.Logger) error {
	limit, err := memlimit.Set()
	switch {
	case errors.Is(err, memlimit.ErrNoLimit), errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported):
		return nil
	case err != nil:
		return fmt.Errorf("reading the container's memory limit: %w", err)
	}
	if limit < math.MaxInt64 {
		logger.Info("memory bound", "bytes", limit)
	}
	return nil
}

// beside opens the database that a server may be using at the same time.
func beside(ctx context.Context, db config.Database, std Stdio, do func(*auth.Service, *audit.Log) error) (err error) {
	logger := slog.New(slog.NewTextHandler(std.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := store.Open(ctx, store.Config{Dir: db.Dir, URL: db.URL.Reveal(), Logger: logger})
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	log := audit.New(s, logger)
	return do(auth.New(auth.Config{Store: s, Audit: log, Logger: logger}), log)
}

// onHost is the caller of a command: whoever can open the database may do everything with it.
func onHost() fleet.Caller {
	name := "host"
	if u, err := osuser.Current(); err == nil && u.Username != "" {
		name = u.Username // of the person at the terminal, for the record only
	}
	return fleet.Caller{Name: name, Role: fleet.RoleAdmin, Via: "cli"}
}

func user(ctx context.Context, cmd config.Command, cfg config.User, people *auth.Service, std Stdio) error {
	by := onHost()
	switch cmd {
	case config.CommandUserAdd:
		if cfg.Invite {
			return invite(ctx, by, cfg, people, std.Out)
		}
		password, made, err := readPassword(cfg.PasswordFile, std.In)
		if err != nil {
			return err
		}
		if err := people.AddUser(ctx, by, cfg.Name, fleet.Role(cfg.Role), password); err != nil {
			return err
		}
		return said(std.Out, made, password, "added %s as %s", cfg.Name, cfg.Role)
	case config.CommandSetPassword:
		password, made, err := readPassword(cfg.PasswordFile, std.In)
		if err != nil {
			return err
		}
		if err := people.SetPassword(ctx, by, cfg.Name, password); err != nil {
			return err
		}
		return said(std.Out, made, password, "set the password of %s; their sessions and tokens have ended", cfg.Name)
	case config.CommandUserDisable:
		if err := people.SetDisabled(ctx, by, cfg.Name, true); err != nil {
			return err
		}
		return said(std.Out, false, "", "disabled %s; their sessions and tokens have ended", cfg.Name)
	case config.CommandUserEnable:
		if err := people.SetDisabled(ctx, by, cfg.Name, false); err != nil {
			return err
		}
		return said(std.Out, false, "", "enabled %s", cfg.Name)
	case config.CommandUserGrant:
		g := fleet.Grant{Scope: fleet.Scope(cfg.Scope), Role: fleet.Role(cfg.Role)}
		for _, p := range cfg.Also {
			g.Also = append(g.Also, fleet.Permission(p))
		}
		if err := people.AddGrant(ctx, by, cfg.Name, g); err != nil {
			return err
		}
		return said(std.Out, false, "", "granted %s %s; their sessions have ended", cfg.Name, g)
	case config.CommandUserRevoke:
		if err := people.DropGrant(ctx, by, cfg.Name, fleet.Scope(cfg.Scope)); err != nil {
			return err
		}
		return said(std.Out, false, "", "took from %s what they might do in %s; their sessions have ended", cfg.Name, cfg.Scope)
	case config.CommandResetTOTP:
		if err := people.ResetFactor(ctx, by, cfg.Name); err != nil {
			return err
		}
		return said(std.Out, false, "", "took away the second factor of %s; their sessions and tokens have ended", cfg.Name)
	case config.CommandUserUnblock:
		if err := people.Unblock(ctx, by, cfg.Name); err != nil {
			return err
		}
		return said(std.Out, false, "", "failed sign-ins of %s are forgotten; they may try again", cfg.Name)
	case config.CommandUserList:
		return listUsers(ctx, people, std.Out)
	default:
		return fmt.Errorf("%q is no command about people", cmd)
	}
}

// invite adds a person who sets their own password. Where browsers find the server is not always known here.
func invite(ctx context.Context, by fleet.Caller, cfg config.User, people *auth.Service, out io.Writer) error {
	inv, err := people.InviteUser(ctx, by, cfg.Name, fleet.Role(cfg.Role))
	if err != nil {
		return err
	}
	where := "invitation, good once and until %s; open /invite on the server and enter: %s"
	if cfg.External != nil {
		where = "invitation, good once and until %s: " + cfg.External.String() + "/invite#%s"
	}
	_, err = fmt.Fprintf(out, "added %s as %s\n"+where+"\n", inv.Name, cfg.Role, inv.ExpiresAt.UTC().Format(time.RFC3339), inv.Code)
	return err
}

// said confirms, and shows a password that was made up: nobody else knows it.
func said(out io.Writer, made bool, password, format string, args ...any) error {
	text := fmt.Sprintf(format, args...) + "\n"
	if made {
		text += "password: " + password + "\n"
	}
	_, err := io.WriteString(out, text)
	return err
}

func listUsers(ctx context.Context, people *auth.Service, out io.Writer) error {
	users, err := people.Users(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tROLE\tSTATE\tCREATED\tLAST SIGN-IN\tGRANTS")
	for _, u := range users {
		state, last := "enabled", "never"
		if u.Disabled {
			state = "disabled"
		}
		if !u.LastSignIn.IsZero() {
			last = u.LastSignIn.UTC().Format(time.RFC3339)
		}
		grants := make([]string, len(u.Grants))
		for i, g := range u.Grants {
			grants[i] = inert.Text(g.String())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", inert.Text(u.Name), inert.Text(string(u.Role)), state, u.CreatedAt.UTC().Format(time.RFC3339), last, strings.Join(grants, "; "))
	}
	return w.Flush()
}

// maxPassword is more than a password may have; what is longer is a wrong file.
const maxPassword = 4 << 10

// readPassword reads the first line of the file, of standard input for "-", or makes a password up.
func readPassword(file string, in io.Reader) (password string, made bool, err error) {
	switch file {
	case "":
		return rand.Text(), true, nil
	case "-":
		password, err = firstLine(in)
	default:
		var f *os.File
		if f, err = os.Open(file); err != nil {
			return "", false, fmt.Errorf("reading the password: %w", err)
		}
		password, err = firstLine(f)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return "", false, fmt.Errorf("reading the password: %w", err)
	}
	return password, false, nil
}

func firstLine(in io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(in, maxPassword)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}
