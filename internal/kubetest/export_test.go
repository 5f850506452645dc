package kubetest

// DirOf is where a cluster's processes write.
func DirOf(c *Cluster) string { return c.dev.Dir }

// KillDevcluster kills the program between the test and the components.
func KillDevcluster(d *Devcluster) error { return d.cmd.Process.Kill() }
