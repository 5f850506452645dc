# kube-node-manager. `make help` lists what there is.

SHELL      := /bin/bash
GO         ?= go
BIN        := bin
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS    := -s -w -X main.version=$(VERSION)
# The same commit and Go version give the same bytes, wherever it is built: no paths, no times, nothing of the checkout.
BUILD      := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
TOOL       := $(GO) tool -modfile=tools/go.mod
LINT       := $(TOOL) golangci-lint
# Changes a second in the demo's clusters; 0 turns them off.
TRICKLE    ?= 0.5
LISTEN     ?= 127.0.0.1:8080
KUBECONFIG ?= $(HOME)/.kube/config
# Packages whose tests need a real control plane or a browser take longer than the default of 10 minutes on small machines.
TEST_TIMEOUT ?= 25m

.DEFAULT_GOAL := help
.PHONY: help demo run build sbom reproducible vuln defects devcluster browser postgres slapd test check generate generated tidy fix lint vet bench bench-quick bench-go fuzz image clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sort | awk -F ':.*?## ' '{printf "  %-12s %s\n", $$1, $$2}'

demo: build devcluster ## two local clusters with fake nodes and the app in front of them; Ctrl-C ends it all
	@$(GO) run ./deploy/demo -app $(BIN)/kube-node-manager -devcluster "$$(deploy/devcluster/build.sh)/devcluster" -listen $(LISTEN) -trickle $(TRICKLE)

run: build ## the app with your own kubeconfig; every context becomes a cluster
	@$(BIN)/kube-node-manager serve --listen $(LISTEN) --kubeconfig $(KUBECONFIG) --log-format text

build: ## the binary, into bin/
	@$(BUILD) -o $(BIN)/kube-node-manager ./cmd/kube-node-manager

sbom: build ## what the binary is made of, as CycloneDX: bin/kube-node-manager.cdx.json
	@$(GO) run ./internal/sbom $(BIN)/kube-node-manager >$(BIN)/kube-node-manager.cdx.json

reproducible: ## build the commit twice, elsewhere and from nothing, and compare (minutes: everything is compiled again)
	@VERSION=$(VERSION) deploy/reproducible.sh

vuln: ## known vulnerabilities that the product reaches; needs the network, and says so where there is none
	@$(TOOL) govulncheck ./cmd/kube-node-manager || { code=$$?; \
	  [ $$code = 3 ] || echo "make vuln: nothing was checked: the database of vulnerabilities could not be asked" >&2; exit $$code; }

defects: devcluster ## plant faults in the product, one at a time: the tests have to notice each (half an hour)
	$(GO) run ./internal/defects

devcluster: ## build the local control plane (minutes the first time, nothing afterwards)
	@deploy/devcluster/build.sh >/dev/null
	@deploy/devcluster/kubectl/build.sh >/dev/null

browser: ## install Chromium for the browser tests where it is missing
	@deploy/install-chromium.sh

postgres: ## install PostgreSQL for the tests where it is missing
	@deploy/install-postgresql.sh

slapd: ## install OpenLDAP's server for the tests where it is missing
	@deploy/install-slapd.sh

test: browser postgres slapd devcluster ## everything: unit, real control plane, browser, PostgreSQL and directory; with the race detector
	$(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) ./...
	# The same flags as its build, and no vet: both would compile or read all of Kubernetes once more.
	cd deploy/devcluster && CGO_ENABLED=0 GOFLAGS=-buildvcs=false $(GO) test -trimpath -vet=off ./...

check: generated tidy fix vet lint test ## all that CI runs

generate: ## templ → Go
	$(GO) tool templ generate
	$(GO) generate ./...

generated: ## fail if generated files are not current
	@$(GO) tool templ generate >/dev/null && git diff --exit-code -- '*_templ.go'

tidy: ## fail if go.mod is not tidy
	$(GO) mod tidy -diff
	cd deploy/devcluster && $(GO) mod tidy -diff

fix: ## fail if the code could be more modern
	$(GO) fix -diff ./...

vet:
	$(GO) vet ./...

lint: ## golangci-lint, pinned in tools/go.mod
	$(LINT) run ./...

bench: devcluster ## the numbers of docs/benchmarks.md, beside a raw watch in the same run
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 60m ./internal/e2e

bench-quick: devcluster ## the same in small: does it all run?
	KNM_BENCH_SCALE=20 $(GO) test -run '^$$' -bench . -benchtime 1x -timeout 15m ./internal/e2e

bench-go: ## go benchmarks with allocations for the hot paths
	$(GO) test -run '^$$' -bench . -benchmem ./realtime/... ./views/...

fuzz: ## each fuzz target for a short while
	@set -e; $(GO) list -f '{{.Dir}} {{.ImportPath}}' ./... | while read -r dir pkg; do \
	  grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null | sed 's/func //' | while read -r f; do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime 10s $$pkg </dev/null; done; done

image: ## the container image, with the docker client of this machine
	docker build --build-arg VERSION=$(VERSION) -t kube-node-manager:$(VERSION) .

clean: ## what make built here; caches stay
	rm -rf $(BIN)
