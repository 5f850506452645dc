// Package kubetest gives tests a real Kubernetes control plane: etcd,
// kube-apiserver, kube-controller-manager, kube-scheduler, and KWOK in the
// place of kubelets, built and started from deploy/devcluster.
//
// [Shared] is the cluster that all tests of a test binary share; most tests
// need no other. Everything a test makes in it has a name of its own ([Name])
// and is deleted when the test ends, so that tests may run in parallel. [Start]
// makes private clusters for the tests that stop or freeze components.
//
// The API server's audit log ([Cluster.AuditLog]) is the witness of what was
// really done: a request is in it by the time its answer has been read.
//
// A package that uses Shared should have
//
//	func TestMain(m *testing.M) { os.Exit(kubetest.Run(m)) }
//
// or, with goleak,
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(kubetest.Main(m)) }
//
// Without either the control plane still ends with the test binary, however
// that dies: it listens to a pipe that the kernel then closes. Tests are
// skipped with -short. The first build of the control plane takes minutes; run
// deploy/devcluster/build.sh ahead of "go test", which is impatient.
//
// The package is for tests and benchmarks only. Cluster and Audit are safe for
// concurrent use.
package kubetest
