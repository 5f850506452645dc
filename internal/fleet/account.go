package fleet

import "time"

// Account is a User with what auth needs to check a password. It never leaves the store and auth.
type Account struct {
	User
	Password   string // argon2id hash in PHC form; "" for a person who has none
	Subject    string // at the issuer of a person that is not local
	Invitation string // hash of the code with which a person that is being added may set a password
}

// UserChange is what is to be different about a person; nil fields stay. Every change that does something ends the
// person's sessions; disabling and a new password end the API tokens too.
type UserChange struct {
	Role      *Role
	Grants    func(now []Grant) ([]Grant, error) // what the grants become; may be asked again, and nil leaves them
	Groups    *[]string                          // that a provider vouches for now; a change of these alone ends nothing
	Disabled  *bool
	Password  *string // argon2id hash in PHC form
	Revoke    bool    // end sessions and tokens, change nothing
	NoFactor  bool    // take the second factor away
	Proof     *Proof  // that has to be good for NoFactor, and is used up; nil where none is asked for
	KeepAdmin bool    // refuse with ErrConflict what would leave no enabled admin
}

// Credential is a session or an API token that is good now, with the person as the store knows them now.
type Credential struct {
	Hash      string // of the secret
	User      User
	Role      Role   // that a token may do at most; "" for no limit
	Scope     Scope  // where; "" for no limit
	Data      string // what the session manager keeps; "" for a token
	SeenAt    time.Time
	IdleAt    time.Time // when it ends without activity; zero for a token
	ExpiresAt time.Time
}

// NewSession is a session to be recorded.
type NewSession struct {
	Session
	UserID   string
	Epoch    int64 // of the person when the password was checked; another one now makes the session void
	Data     string
	IdleAt   time.Time
	Replaces string // hash of a session of the same browser that ends with this one; "" for none
	Half     string // hash of the half sign-in that this one completes; needed where there is a second factor
	Proof    Proof  // used up by it
	Device   NewDevice
}

// NewDevice is a browser that is to be known from now on as one in which the person has signed in.
type NewDevice struct {
	Hash      string // of its secret; "" for none
	Name      string // subject of the counter which the browser's own counts instead of
	Replaces  string // hash of what the browser had until now; "" for none
	ExpiresAt time.Time
	Most      int // so many of one person; the oldest go
}

// SignIn is what a browser gets for a sign-in that is complete.
type SignIn struct {
	Token       string // of the session
	Expires     time.Time
	Device      string // by which the browser is known at the next sign-in; "" for none
	DeviceUntil time.Time
}

// CredentialKey tells one good credential from another and says whose it is.
type CredentialKey struct {
	Hash   string
	UserID string
	Epoch  int64 // of the person now
}

// Attempts counts failed sign-ins of one name, one known browser, one address or everybody.
type Attempts struct {
	Count   int
	Since   time.Time // when counting began
	Blocked time.Time // no attempt before; zero for none
}

// AttemptScope says by what attempts are counted.
type AttemptScope string

// The scopes.
const (
	AttemptName   AttemptScope = "name"
	AttemptDevice AttemptScope = "device" // instead of the name, where the browser is known
	AttemptAddr   AttemptScope = "addr"
	AttemptAll    AttemptScope = "all"
)

// AttemptKey names what is counted.
type AttemptKey struct {
	Scope   AttemptScope
	Subject string // never a name as typed: people type passwords into the wrong field
}

// Delays tells whether the counter makes who is counted wait, longer each time, and starts afresh when they succeed.
func (k AttemptKey) Delays() bool { return k.Scope == AttemptName || k.Scope == AttemptDevice }
