package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// command is one line of standard input, see README.md.
type command struct {
	Cmd       string  `json:"cmd"`
	Cluster   string  `json:"cluster"`
	Component string  `json:"component"`
	Rate      float64 `json:"rate"`
}

// reply answers one command.
type reply struct {
	OK    bool           `json:"ok"`
	Error string         `json:"error,omitempty"`
	PIDs  map[string]int `json:"pids,omitempty"` // of the components; 0 when stopped
}

// serve obeys the commands until ctx ends. Without commands it only waits.
func (f *fleet) serve(ctx context.Context, commands <-chan string, stdout io.Writer) error {
	out := json.NewEncoder(stdout)
	for {
		select {
		case <-ctx.Done():
			return nil // asked to end, by a signal or the end of input
		case line := <-commands:
			r, err := f.do(ctx, line)
			if r.OK = err == nil; err != nil {
				r.Error = err.Error()
			}
			if err := out.Encode(r); err != nil {
				return err
			}
		}
	}
}

func (f *fleet) do(ctx context.Context, line string) (reply, error) {
	var cmd command
	if err := json.Unmarshal([]byte(line), &cmd); err != nil {
		return reply{}, fmt.Errorf("reading command: %w", err)
	}
	if cmd.Cmd == "trickle" {
		f.trickle.set(cmd.Rate)
		return reply{}, nil
	}
	c := f.cluster(cmd.Cluster)
	if c == nil {
		return reply{}, fmt.Errorf("no cluster %q", cmd.Cluster)
	}
	if cmd.Cmd == "status" {
		r := reply{PIDs: map[string]int{}}
		for _, name := range components {
			r.PIDs[name] = 0
			if p := c.process(name); p.running() {
				r.PIDs[name] = p.cmd.Process.Pid
			}
		}
		return r, nil
	}
	if c.process(cmd.Component) == nil {
		return reply{}, fmt.Errorf("no component %q", cmd.Component)
	}
	switch cmd.Cmd {
	case "start":
		return reply{}, c.startComponent(ctx, cmd.Component)
	case "stop":
		c.stopComponent(cmd.Component)
		return reply{}, nil
	case "kill":
		return reply{}, c.signalComponent(cmd.Component, syscall.SIGKILL)
	case "pause":
		return reply{}, c.signalComponent(cmd.Component, syscall.SIGSTOP)
	case "continue":
		return reply{}, c.signalComponent(cmd.Component, syscall.SIGCONT)
	default:
		return reply{}, errors.New("unknown command")
	}
}

func (f *fleet) cluster(name string) *cluster {
	for _, c := range f.clusters {
		if c.name == name {
			return c
		}
	}
	return nil
}
