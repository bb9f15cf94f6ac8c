#!/bin/sh
# The pure crates (bytes and state machines) must not reach a runtime, a socket or a device, not
# even through another crate.
set -eu
cd "$(dirname "$0")/.."

pure="wire sip"
banned="tokio rustls socket2 nix tun-tap aya mio"

status=0
for crate in $pure; do
    tree=$(${CARGO:-cargo} tree --locked -e normal --prefix none -f '{p}' -p "$crate")
    for name in $banned; do
        if printf '%s\n' "$tree" | grep -q "^$name v"; then
            echo "pure: $crate depends on $name:" >&2
            ${CARGO:-cargo} tree --locked -e normal -p "$crate" -i "$name" >&2
            status=1
        fi
    done
done
[ "$status" -ne 0 ] || echo "pure: $pure are free of $banned"
exit "$status"
