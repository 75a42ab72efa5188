# Every target sets up what it needs first (scripts/setup); nothing is installed when all is there.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo run test node-test peers screenshots check sqlx deny

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## install the Debian packages that are missing
	@scripts/setup

demo: setup ## drive the whole story on a scratch installation, step by step
	@cargo build --bin seedplane
	@target/debug/seedplane demo $(ARGS)

run: setup ## start the trial: own database, real boxes, sandbox payments (ARGS='--listen 127.0.0.1:8081')
	@cargo run -- up $(ARGS)

# Most tests wait for something most of the time, so more of them run than there are processors. What they write stays in
# memory where that is plenty (8 GB free and room in /dev/shm), unless TMPDIR says otherwise.
test: setup ## run the tests (T=part-of-a-name runs some of them)
	@if [ -z "$${TMPDIR:-}" ] && [ -w /dev/shm ] \
	    && [ "$$(df -k --output=avail /dev/shm | tail -n 1)" -gt 6000000 ] \
	    && [ "$$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)" -gt 8000000 ]; then \
	    export TMPDIR=/dev/shm; \
	fi; \
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$(( ($$(nproc) * 3 + 1) / 2 ))} cargo test --workspace $(T)

node-test: ## boot the node image for real, as root, and try what a node promises (ARGS=--keep leaves what it wrote)
	@scripts/setup build
	@scripts/node-test $(ARGS)

peers: ## hold the stand-in for DigitalOcean to its own client, a validating proxy and a fuzzer
	@scripts/setup build
	@scripts/peers

# Pages as the documentation shows them; the browser tests leave pictures of every page in target/screenshots.
PICTURES := buyer-start buyer-pay-partly buyer-box-running buyer-box-usage buyer-money self-hoster-used operator-overview operator-box

screenshots: setup ## walk through every page in a browser, and renew the pictures in docs/images
	@cargo test --test it browser::
	@mkdir -p docs/images
	@for picture in $(PICTURES); do cp "target/screenshots/$$picture.webp" docs/images/; done

check: setup ## formatting, lints, and whether .sqlx is what the queries and the migrations give
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@scripts/sqlx --check
	@shellcheck -x scripts/setup scripts/sqlx scripts/dev-database scripts/node-test scripts/peers
	@shellcheck -s sh crates/provisioning/src/node/gate/*.sh
	@shellcheck crates/provisioning/src/node/image/*.sh

sqlx: setup ## renew .sqlx after changing a query or a migration
	@scripts/sqlx

deny: ## licences, sources, banned and vulnerable crates
	@command -v cargo-deny >/dev/null || { echo "deny: cargo-deny is missing: cargo install --locked cargo-deny" >&2; exit 1; }
	@cargo deny --log-level error check bans licenses sources
	@cargo deny --log-level error check advisories
