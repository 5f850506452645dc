package auth

import (
	"context"
	"errors"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	pollEvery  = 2 * time.Second
	lingerFor  = 10 * time.Second // an end is announced again and again for so long
	cleanEvery = 10 * time.Minute
	pollLimit  = 5 * time.Second
)

// The reasons of an End.
const (
	ReasonLogout   = "logout"
	ReasonReplaced = "replaced" // the same person signed in again in the same browser, which has the new one
	ReasonExpired  = "expired"  // idle or absolute
	ReasonDisabled = "disabled"
	ReasonPassword = "password"
	ReasonRole     = "role"
	ReasonRevoked  = "revoked" // ended from a list of sessions or tokens
)

// End says that a credential is good no longer, or no longer for what it was good for: whatever was opened with it has
// to close.
type End struct {
	Session string // hash of the session or token; "" for everything of the person
	UserID  string
	Reason  string
}

// OnEnd adds a function that is told of every end. It is called by whoever ended it, must not wait for anything, and
// may be told the same again. Functions are added before Run.
func (s *Service) OnEnd(fn func(End)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = append(s.hooks, fn)
}

func (s *Service) announce(e End) {
	s.mu.Lock()
	hooks := s.hooks
	s.mu.Unlock()
	for _, fn := range hooks {
		fn(e)
	}
}

// known is a credential that this process has let in.
type known struct {
	userID  string
	epoch   int64     // of the person when it was first let in, or when a change was last announced
	touched time.Time // last time its use was written, or is being written
	reason  string    // why it ended, "" while it has not
	ended   time.Time
}

// track remembers a credential, so that its end is noticed, and tells whether its use, if it is activity, is to be
// written. Of many requests at once one is told so.
func (s *Service) track(c fleet.Credential, active bool, now time.Time) (due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.known[c.Hash]
	if k == nil {
		// The epoch of what is known already is left alone: if it has changed, that is still to be announced.
		k = &known{userID: c.User.ID, epoch: c.User.Epoch, touched: c.SeenAt}
		s.known[c.Hash] = k
	}
	last := k.touched
	if c.SeenAt.After(last) {
		last = c.SeenAt
	}
	if !active || now.Sub(last) < touchEvery {
		return false
	}
	k.touched = now
	return true
}

// Run notices what ends without a call to this Service: by another process or by a deadline. It also deletes what has
// been dead for long. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	poll, clean := time.NewTicker(pollEvery), time.NewTicker(cleanEvery)
	defer poll.Stop()
	defer clean.Stop()
	pollTold, cleanTold := false, false
	s.told(ctx, &cleanTold, "cleaning", s.clean(ctx))
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			s.told(ctx, &pollTold, "polling", s.poll(ctx))
		case <-clean.C:
			s.told(ctx, &cleanTold, "cleaning", s.clean(ctx))
		}
	}
}

// told logs a failure when it begins and when it is over, not every two seconds.
func (s *Service) told(ctx context.Context, told *bool, what string, err error) {
	switch {
	case err != nil && !*told && !errors.Is(err, context.Canceled):
		s.logger.ErrorContext(ctx, "credentials cannot be read: ends are noticed late", "doing", what, "err", err)
		*told = true
	case err == nil && *told:
		s.logger.InfoContext(ctx, "credentials can be read again", "doing", what)
		*told = false
	}
}

func (s *Service) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	now := time.Now()
	return s.store.DropExpired(ctx, now, now.Add(-quiet))
}

// poll compares what this process has let in with what is good now, by one query, and announces the difference. It
// compares states and not events, so that nothing can be missed: not by a lost message, not by a pause.
func (s *Service) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	s.mu.Lock()
	before := make([]string, 0, len(s.known)) // what is let in during the query is left to the next poll
	for hash := range s.known {
		before = append(before, hash)
	}
	s.mu.Unlock()
	if len(before) == 0 {
		return nil
	}
	now := time.Now()
	list, err := s.store.Credentials(ctx, now)
	if err != nil {
		return err
	}
	good := make(map[string]int64, len(list))
	for _, k := range list {
		good[k.Hash] = k.Epoch
	}
	var fresh []string // that ended since the last poll: why is to be asked
	var ends []End
	s.mu.Lock()
	for _, hash := range before {
		k := s.known[hash]
		epoch, ok := good[hash]
		switch {
		case ok && epoch != k.epoch:
			k.epoch = epoch
			ends = append(ends, End{Session: hash, UserID: k.userID, Reason: ReasonRole})
		case ok:
		case k.reason == "":
			fresh = append(fresh, hash)
		case now.Sub(k.ended) > lingerFor:
			delete(s.known, hash)
		default:
			ends = append(ends, End{Session: hash, UserID: k.userID, Reason: k.reason})
		}
	}
	s.mu.Unlock()
	for _, hash := range fresh {
		ends = append(ends, s.ended(ctx, hash, now))
	}
	for _, e := range ends {
		s.announce(e)
	}
	return nil
}

// ended notes that a credential has ended and says why. Not to know why does not keep the end back.
func (s *Service) ended(ctx context.Context, hash string, now time.Time) End {
	why, err := s.store.WhyEnded(ctx, hash)
	if err != nil || why == "" {
		why = ReasonExpired
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.known[hash]
	k.reason, k.ended = why, now
	return End{Session: hash, UserID: k.userID, Reason: why}
}
