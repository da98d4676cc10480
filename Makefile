# Short names for what one does every day. `make verify` leaves a sound checkout as it is.
.PHONY: dev test verify bench generate fmt

dev:
	./start-hotreload.sh

test:
	./scripts/test.sh

verify:
	./.ci/run

bench:
	cargo bench --package gpu-manager-benches

# Rewrites the generated files that are checked in.
generate:
	UPDATE_EXPECT=1 cargo nextest run --package gpu-bridge openapi
	UPDATE_EXPECT=1 cargo nextest run --package gpu-policy checked_in

fmt:
	cargo fmt --all
