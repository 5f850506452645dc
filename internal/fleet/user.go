package fleet

import "time"

// User is a person who can sign in. The password's hash never leaves the store and auth.
type User struct {
	ID         string
	Name       string   // normalised: lower case, NFKC
	Role       Role     // everywhere
	Grants     []Grant  // in some clusters, beside it
	Groups     []string // that a provider vouched for at the last sign-in
	Disabled   bool
	Epoch      int64 // moves with every change that must end sessions
	CreatedAt  time.Time
	LastSignIn time.Time

	Kind         PersonKind
	Issuer       string    // who vouches for a person that is not local
	SecondFactor time.Time // since when one is asked for; zero for none
	InvitedUntil time.Time // until when the person may set a password with an invitation; zero for none
	DelayedUntil time.Time // until when sign-ins by this name have to wait, in browsers that do not know it; zero for not
}

// Session is one signed-in browser, as its owner sees it.
type Session struct {
	Hash      string // of the token; names the session without being able to use it
	Addr      string
	UserAgent string
	CreatedAt time.Time
	SeenAt    time.Time
	ExpiresAt time.Time
	Current   bool
}

// Token is an API token, as its owner sees it. The secret is shown once, at creation.
type Token struct {
	ID        string
	Name      string
	Role      Role  // that it may do at most; "" for as much as the person
	Scope     Scope // where; "" for wherever the person may
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time
}
