package drain

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(kubetest.Main(m)) }
