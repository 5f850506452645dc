package store

// GroupMost is how many calls share a transaction at most.
const GroupMost = groupMost

// Waiting is the number of calls that wait to write.
func Waiting(s *Store) int {
	s.turns.mu.Lock()
	defer s.turns.mu.Unlock()
	return len(s.turns.waiting)
}

// EntriesQuery is how entries are asked for.
var EntriesQuery = entriesQuery
