package fleet

import (
	"encoding/json"
	"testing"
	"time"
)

func TestJSON_FieldsOfTheContract(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	node := &Node{
		Ref: NodeRef{Cluster: "prod", Name: "n"}, UID: "u", Status: StatusReady, Pressure: []string{"DiskPressure"},
		Cordon: &Cordon{By: "ada", Reason: "disk", Since: at}, Roles: []string{"worker"}, Labels: map[string]string{"a": "b"},
		Taints: []Taint{{Key: "k", Effect: NoSchedule}}, Conditions: []Condition{{Type: "Ready", Status: "True", LastHeartbeat: at}},
		Capacity: Resources{Raw: map[string]string{"cpu": "8"}}, Addresses: []Address{{Type: "InternalIP", Address: "10.0.0.1"}},
		Info: Info{KubeletVersion: "v1.34.2"}, Created: at, UpdatedAt: at, Revision: 7,
	}
	items := []Item{{Seq: 1, Ref: NodeRef{Cluster: "prod", Name: "n"}, State: ItemFailed, Code: CodeNotFound, Error: "gone"}}
	label := "x"
	drained := Item{
		Zone: "a", Control: true, State: ItemRunning, Edits: []Edit{{Kind: EditLabel, Key: "k", After: &label, Outcome: EditAdded}},
		Drain: &DrainProgress{State: DrainEvicting, Evicted: 1, Pods: []PodProgress{
			{Namespace: "ns", Name: "a", UID: "1", State: PodGone}, {Namespace: "ns", Name: "b", UID: "2", State: PodBlockedByPDB},
		}},
	}
	batch := Batch{
		ID: "b1", Operation: Operation{Action: ActionCordon, Reason: "disk"}, State: BatchDone, Outcome: OutcomePartial,
		CreatedBy: "ada", CreatedAt: at, Version: 3, Counts: Counts{Total: 1, Failed: 1},
	}
	tests := []struct {
		name   string
		encode func() ([]byte, error)
		want   string
	}{
		{"node", func() ([]byte, error) { return NodeJSON(node) }, `{"cluster":"prod","name":"n","uid":"u","status":"Ready","pressure":["DiskPressure"],` +
			`"schedulable":false,"cordon":{"by":"ada","reason":"disk","since":"2026-01-02T03:04:05Z"},"roles":["worker"],"labels":{"a":"b"},"annotations":{},` +
			`"taints":[{"key":"k","effect":"NoSchedule"}],"conditions":[{"type":"Ready","status":"True","reason":"","message":"","last_heartbeat":"2026-01-02T03:04:05Z"}],` +
			`"capacity":{"cpu":"8"},"allocatable":{},"addresses":[{"type":"InternalIP","address":"10.0.0.1"}],` +
			`"info":{"kubelet_version":"v1.34.2","os_image":"","os":"","architecture":"","kernel_version":"","container_runtime":""},` +
			`"created":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","revision":7}`},
		{"bare node", func() ([]byte, error) { return NodeJSON(&Node{}) }, `{"cluster":"","name":"","uid":"","status":"","pressure":[],` +
			`"schedulable":false,"cordon":null,"roles":[],"labels":{},"annotations":{},"taints":[],"conditions":[],"capacity":{},"allocatable":{},"addresses":[],` +
			`"info":{"kubelet_version":"","os_image":"","os":"","architecture":"","kernel_version":"","container_runtime":""},` +
			`"created":"0001-01-01T00:00:00Z","updated_at":"0001-01-01T00:00:00Z","revision":0}`},
		{"cluster", func() ([]byte, error) {
			return ClusterJSON(Cluster{Name: "prod", Server: "https://x", State: ClusterLive, Since: at, Nodes: 3, NotReady: 1})
		}, `{"name":"prod","server":"https://x","version":"","uid":"","state":"live","since":"2026-01-02T03:04:05Z","reason":"","nodes":3,"ready":0,"not_ready":1,"cordoned":0}`},
		{"another cluster", func() ([]byte, error) {
			return ClusterJSON(Cluster{Name: "prod", UID: "u1", FoundUID: "u2", State: ClusterUnreachable})
		}, `{"name":"prod","server":"","version":"","uid":"u1","found_uid":"u2","state":"unreachable","reason":"","nodes":0,"ready":0,"not_ready":0,"cordoned":0}`},
		{"item", func() ([]byte, error) { return ItemJSON(items[0]) }, `{"seq":1,"cluster":"prod","node":"n","state":"failed","code":"not_found","error":"gone","changed":false}`},
		{"batch", func() ([]byte, error) { return BatchJSON(batch, items) }, `{"id":"b1","action":"cordon","state":"done","outcome":"partial","reason":"disk","created_by":"ada",` +
			`"created_at":"2026-01-02T03:04:05Z","version":3,"counts":{"total":1,"queued":0,"running":0,"succeeded":0,"failed":1,"skipped":0,"cancelled":0},` +
			`"items":[{"seq":1,"cluster":"prod","node":"n","state":"failed","code":"not_found","error":"gone","changed":false}]}`},
		{"progress", func() ([]byte, error) { return BatchJSON(Batch{ID: "b"}, nil) }, `{"id":"b","action":"","state":"","outcome":"","created_by":"","created_at":"0001-01-01T00:00:00Z",` +
			`"version":0,"counts":{"total":0,"queued":0,"running":0,"succeeded":0,"failed":0,"skipped":0,"cancelled":0}}`},
		{"a drain in a stream", func() ([]byte, error) { return ItemBriefJSON(drained) }, `{"seq":0,"cluster":"","node":"","zone":"a","control_plane":true,"state":"running",` +
			`"error":"","changed":false,"edits":[{"kind":"label","key":"k","before":null,"after":"x","outcome":"added"}],"drain":{"state":"evicting","evicted":1,` +
			`"pod_states":{"blocked_by_pdb":1,"gone":1},"pods":[{"namespace":"ns","name":"b","uid":"2","state":"blocked_by_pdb"}],"pods_unlisted":1}}`},
		{"a drain in a report", func() ([]byte, error) {
			return BatchJSON(Batch{
				ID: "b", PausedBy: "ada", Parent: "a", Rollout: Rollout{
					MaxConcurrent: 1, PerCluster: 2, PerZone: 3, MaxUnavailable: 4, MaxFailures: 5, PauseBetween: time.Minute, Canary: 6, Order: OrderZone,
				},
				Operation: Operation{
					Action: ActionDrain, Drain: &DrainOptions{GracePeriodSeconds: -1}, Labels: []string{"a=b"}, Taints: []string{"c:NoExecute"}, Mode: EditAdd,
					OnConflict: ConflictSkip, AllowProtected: true, Source: &NodeRef{Cluster: "prod", Name: "n"},
					Template: &TemplateUse{ID: "t", Name: "T", Version: 2}, Revert: "r",
				},
			}, []Item{drained})
		}, `{"id":"b","action":"drain","state":"","outcome":"","created_by":"","created_at":"0001-01-01T00:00:00Z",` +
			`"version":0,"counts":{"total":0,"queued":0,"running":0,"succeeded":0,"failed":0,"skipped":0,"cancelled":0},` +
			`"paused_by":"ada","parent":"a","max_concurrent":1,"per_cluster":2,"per_zone":3,"max_unavailable":4,"max_failures":5,"pause_between":"1m0s","canary":6,"order":"zone",` +
			`"drain":{"grace_period_seconds":-1,"timeout_seconds":0,"delete_emptydir_data":false,"force":false,"disable_eviction":false,"uncordon_after":false,` +
			`"ignore_opt_out":false,"skip_wait_for_delete_timeout":0,"wait_for_replacements":false},"labels":["a=b"],"taints":["c:NoExecute"],"mode":"add","on_conflict":"skip",` +
			`"allow_protected":true,"source":{"cluster":"prod","node":"n"},"template":{"id":"t","name":"T","version":2},"revert":"r",` +
			`"items":[{"seq":0,"cluster":"","node":"","zone":"a","control_plane":true,"state":"running","error":"","changed":false,` +
			`"edits":[{"kind":"label","key":"k","before":null,"after":"x","outcome":"added"}],"drain":{"state":"evicting","evicted":1,"pod_states":{"blocked_by_pdb":1,"gone":1},` +
			`"pods":[{"namespace":"ns","name":"a","uid":"1","state":"gone"},{"namespace":"ns","name":"b","uid":"2","state":"blocked_by_pdb"}]}}]}`},
		{"no items", func() ([]byte, error) { return BatchJSON(Batch{ID: "b"}, []Item{}) }, `{"id":"b","action":"","state":"","outcome":"","created_by":"","created_at":"0001-01-01T00:00:00Z",` +
			`"version":0,"counts":{"total":0,"queued":0,"running":0,"succeeded":0,"failed":0,"skipped":0,"cancelled":0},"items":[]}`},
	}
	for _, tt := range tests {
		got, err := tt.encode()
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %v\n got %s\nwant %s", tt.name, err, got, tt.want)
		}
		if !json.Valid(got) {
			t.Errorf("%s: not valid", tt.name)
		}
	}
}
