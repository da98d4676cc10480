# Short names for what one does every day. `make verify` leaves a sound checkout as it is.
.PHONY: dev test verify evidence bench generate fmt

dev:
	./start-hotreload.sh

test:
	./scripts/test.sh

verify:
	./.ci/run

# All the evidence, and its table in docs/reliability.md. Takes a quarter of an hour.
evidence:
	./scripts/evidence.sh
	./scripts/test.sh
	cargo run --package gpu-manager-tests --bin reliability-table

bench:
	cargo bench --package gpu-manager-benches

# Rewrites the generated files that are checked in.
generate:
	UPDATE_EXPECT=1 cargo nextest run --package gpu-bridge openapi
	UPDATE_EXPECT=1 cargo nextest run --package gpu-policy checked_in

fmt:
	cargo fmt --all
