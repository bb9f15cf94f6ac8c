# What CI runs is what people run. `make demo` and `make test` do all the set-up.

CARGO ?= cargo
LAB = target/debug/sipcast-lab

.PHONY: demo test setup build check fmt clippy pure docs unit namespaces deny bench

# A call over UDP and one over TCP between two phones behind NATs, with a route flip in mid-call.
demo: setup build
	$(LAB) demo

# Everything that must be so. CI=true: a machine on which a namespace test cannot run is an error; one whose
# material lies beside the project and is not there says "skipped".
test: setup check pure docs unit namespaces

# Installs what is missing (Debian), or says what that is.
setup:
	scripts/setup.sh

build:
	$(CARGO) build --workspace --bins

check: fmt clippy

fmt:
	$(CARGO) fmt --all -- --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

# wire and sip depend on no runtime, no sockets and no devices.
pure:
	scripts/pure.sh

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

unit:
	if $(CARGO) nextest --version >/dev/null 2>&1; \
	then $(CARGO) nextest run --workspace; \
	else $(CARGO) test --workspace; fi

# Programs and phones in network namespaces; without root where users may make namespaces.
namespaces: build
	$(LAB) run all

# Licences, banned crates and sources; needs cargo-deny.
deny:
	$(CARGO) deny check bans licenses sources

# make bench WHAT=list
WHAT ?= list
bench:
	$(CARGO) build --workspace --bins --release
	target/release/sipcast-lab bench $(WHAT)
