package main

import "io"

type trickle struct{}

func newTrickle([]*cluster, io.Writer) *trickle { return &trickle{} }
func (*trickle) set(float64)                    {}
