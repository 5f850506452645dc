package realtime

import (
	"net"
	"syscall"
	"testing"
)

// TestListenConfig_AcceptedConnectionsInherit: the options are set on the listener and have to hold on what it accepts.
func TestListenConfig_AcceptedConnectionsInherit(t *testing.T) {
	t.Parallel()
	l, err := ListenConfig().Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for option, want := range map[int]int{tcpNotsentLowat: notsentLowatBytes, tcpUserTimeout: userTimeoutMillis} {
		var got int
		var failed error
		if err := raw.Control(func(fd uintptr) { got, failed = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option) }); err != nil || failed != nil {
			t.Fatalf("option %d: %v, %v", option, err, failed)
		}
		if got != want {
			t.Errorf("option %d is %d, want %d", option, got, want)
		}
	}
}
