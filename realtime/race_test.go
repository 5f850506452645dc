//go:build race

package realtime

// raceDetector tells that goroutines and their stacks are larger than they are.
const raceDetector = true
