# Everything a developer or an operator does with a checkout. `make` lists the targets.
GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/dnsmesh/dmpd/internal/config.Version=$(VERSION)
BINARIES := dmpd dmp-dataplane dmp-controlplane dmp-bench
FUZZTIME ?= 30s

.PHONY: help build build-testclock run test race lint vectors interop partition seeds scaling bench bench-draw bench-compare bench-peers fuzz fuzz-list clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## static binaries in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(BINARIES))

build-testclock: ## binaries in bin/testclock/ whose wall clock a test can step (DMP_TEST_CLOCK)
	CGO_ENABLED=0 $(GO) build -trimpath -tags testclock -ldflags '$(LDFLAGS)' -o bin/testclock/ $(addprefix ./cmd/,$(BINARIES))

run: build ## a node on 127.0.0.1, DNS 5353 and HTTP 8053, zone mesh.test, state in .dmpd
	@DNS_PORT=$(DNS_PORT) HTTP_PORT=$(HTTP_PORT) bash tools/run.sh

test: ## every test that needs Go alone
	$(GO) test -timeout 10m ./...

race: ## the tests under the race detector, with dear checks on (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -short -tags invariants -timeout 15m ./internal/... ./dataplane/... ./controlplane/...

lint: ## formatting, vet, staticcheck, and govulncheck where its database can be reached
	bash tools/lint.sh

vectors: ## the protocol's test vectors from outside the tree (DMP_VECTORS_UPSTREAM names their folder)
	$(GO) test -count=1 -run 'TestUpstreamVectors' -v ./internal/record

interop: build ## real peers: the stock client, dig, kdig, nsupdate, knsupdate, curl
	bash tools/interop/run.sh

partition: ## three nodes whose network is cut for a minute under writes, deletes and kill -9 (root, Linux)
	DMP_PARTITION=60s $(GO) test -timeout 15m -count=1 -run '^TestPartition$$' -v ./tools/crash

seeds: ## clusters on file systems that forget, a thousand of them (SEEDS=)
	DMP_SEEDS=$(or $(SEEDS),1000) $(GO) test -timeout 30m -count=1 -run '^TestForgetting$$' -v ./controlplane

scaling: ## the simulation of docs/scaling.md: its table and plot anew (some minutes, 6 GB)
	DMP_SCALING=$(CURDIR)/docs $(GO) test -timeout 60m -count=1 -run '^TestScaling$$' -v ./controlplane/antientropy

bench: build ## load tests beside the installed peers; BENCH=quick, SCENARIO=, ROUNDS=, PEERS=, MERGE=1 keeps the rest
	bash bench/run.sh

bench-draw: build ## the charts and tables of BENCHMARKS.md anew, from BENCHMARKS.json
	bin/dmp-bench draw

bench-compare: ## this tree beside BASE=commit: Go benchmarks by benchstat (COUNT=), or SCENARIO= under load
	GO=$(GO) BASE=$(BASE) bash bench/compare.sh

bench-peers: ## install NSD, Knot, BIND, PowerDNS and dnsperf from Debian, build NSD with recvmmsg and CoreDNS
	bash bench/peers.sh

fuzz: ## every fuzz target for FUZZTIME, or FUZZ=FuzzX alone
	FUZZTIME=$(FUZZTIME) FUZZ=$(FUZZ) bash tools/fuzz.sh

fuzz-list: ## list the fuzz targets
	@bash tools/fuzz.sh --list

clean: ## remove what was built
	rm -rf bin .cache
