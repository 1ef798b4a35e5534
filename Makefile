# Short names for the commands that CONTRIBUTING.md explains.

GO       ?= go
FUZZTIME ?= 30s

# The version of the linter is written down once, in .ci/run.
GOLANGCI_LINT ?= $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(shell sed -n 's/^golangci_lint=//p' .ci/run)

.PHONY: test test386 race lint faults soak fuzz bench ci

test:
	$(GO) test ./...

# The suites of internal/tests use the system calls of 64-bit systems.
test386:
	GOARCH=386 $(GO) test $$($(GO) list ./... | grep -v /internal/tests/)

race:
	$(GO) test -race -timeout 10m ./...

lint:
	$(GOLANGCI_LINT) run ./...

# The counts of docs/guarantees.md. This takes hours, on Linux, and needs root,
# strace, e2fsprogs and xfsprogs; tests that lack one of these are skipped.
faults:
	$(GO) test ./internal/tests/faults -timeout 6h -kills 500 -cuts 50 -restore-cuts 50 -losses 25 -fills 60 -inject-all \
		-intrusions 2000 -swaps 500 -leaks 1000 -load 10m -load-rows 20000 -sparse 10737418240 -files 100000
	$(GO) test ./internal/tests/restore -timeout 6h -kill-stride 1 -model-time 1h
	$(GO) test ./internal/tests/offsite -timeout 6h -kills 200

soak:
	$(GO) test ./internal/tests/soak -timeout 6h -snapshots 2000

# go test fuzzes one target of one package at a time.
fuzz:
	@grep -rEo '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sort | while IFS=: read -r file target; do \
		echo "$${target#func } in $$(dirname $$file)"; \
		$(GO) test -run '^$$' -fuzz "^$${target#func }\$$" -fuzztime $(FUZZTIME) "$$(dirname $$file)" || exit 1; \
	done

bench:
	$(GO) run ./bench

ci:
	.ci/run
