#!/bin/sh
# Set-up for `make demo` and `make test`: checks the Rust toolchain, installs the missing Debian
# packages and says what each is for. On other systems it prints the list and stops. Doing it again
# changes nothing.
set -eu
cd "$(dirname "$0")/.."

# command or file | Debian package | what for
needs='
cc|gcc|links Rust programs
/usr/lib/x86_64-linux-gnu/crti.o|libc6-dev|links Rust programs
clang|clang|builds the BPF programs; without it a relay needs a socket for every port, and there is no XDP
bpftool|bpftool|takes the XDP program of an ingress away in mid-call, in the lab
ip|iproute2|network namespaces, addresses and routes of the lab
nft|nftables|the NATs of the lab
ethtool|ethtool|checksum settings of the lab
nsenter|util-linux|locks the lab in
setpriv|util-linux|locks the lab in
mount|mount|locks the lab in
dumpcap|wireshark-common|captures in the lab
mergecap|wireshark-common|captures in the lab
tshark|tshark|independent decoder in the tests
sipp|sip-tester|the phones (SIPp)
stunnel4|stunnel4|TLS for the phones of the lab that have none
baresip|baresip-core|a phone that speaks TLS, in the lab
linphonec|linphone-cli|another phone in the lab
/usr/bin/python3|python3|runs the WebSocket phone of the lab
/usr/lib/python3/dist-packages/websockets|python3-websockets|the WebSocket phone of the lab
node|nodejs|runs JsSIP, another WebSocket phone of the lab
npm|npm|fetches JsSIP
kamailio|kamailio|the registrar behind the service, and the peer of the benchmarks
keepalived|keepalived|moves the media address of a pair of relays, in the lab
rtpengine|rtpengine-daemon|a relay of another make in the lab, and the peer of the relay benchmark
dnsmasq|dnsmasq-base|the DNS of the lab
bird|bird2|the routers of the lab and a BGP speaker of its edges
vtysh|frr|another BGP speaker of its edges
/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1|faketime|a concentrator of the lab whose clock is wrong
nats-server|nats-server|shares registrations between the concentrators of the lab
'

# sbin: a plain user has no PATH to nft and ethtool.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

present() {
    case $1 in
        *crti.o) find /usr/lib /usr/lib64 -maxdepth 2 -name crti.o 2>/dev/null | grep -q . ;;
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

missing=$(printf '%s\n' "$needs" | while IFS='|' read -r what package why; do
    [ -z "$what" ] || present "$what" || printf '%s|%s\n' "$package" "$why"
done | sort -u)

install_missing() {
    echo "setup: these Debian packages are missing:"
    printf '%s\n' "$missing" | while IFS='|' read -r package why; do
        printf '    %-18s %s\n' "$package" "$why"
    done
    packages=$(printf '%s\n' "$missing" | cut -d'|' -f1 | sort -u | tr '\n' ' ')
    if ! grep -qs '^ID=debian' /etc/os-release || ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: this is not Debian. Install what corresponds to: $packages" >&2
        echo "setup: then run this again." >&2
        exit 1
    fi
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "setup: root is needed once to install them, as root run:" >&2
            echo "    apt-get update && apt-get install -y --no-install-recommends $packages" >&2
            exit 1
        fi
        sudo=sudo
        echo "setup: root is needed to install them, so sudo may ask for your password"
    fi
    # Non-interactive: wireshark-common would ask who may capture. The answer stays "root only".
    $sudo apt-get -q update
    # shellcheck disable=SC2086 # a list of words
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $packages
    # The lab starts its own.
    case " $packages" in
        *" rtpengine-daemon "*)
            $sudo systemctl disable --now rtpengine-daemon 2>/dev/null || true ;;
    esac
    case " $packages" in
        *" bird2 "*) $sudo systemctl disable --now bird 2>/dev/null || true ;;
    esac
    case " $packages" in
        *" frr "*) $sudo systemctl disable --now frr 2>/dev/null || true ;;
    esac
    case " $packages" in
        *" nats-server "*) $sudo systemctl disable --now nats-server 2>/dev/null || true ;;
    esac
}

check_rust() {
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    how="setup: install it with rustup from https://rustup.rs, then \`rustup update stable\`"
    if ! command -v cargo >/dev/null 2>&1 || ! command -v rustc >/dev/null 2>&1; then
        echo "setup: Rust $wanted or newer is needed and there is none." >&2
        echo "$how" >&2
        exit 1
    fi
    found=$(rustc --version | cut -d' ' -f2)
    oldest=$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)
    if [ "$oldest" != "$wanted" ]; then
        echo "setup: Rust $wanted or newer is needed, and this is $found." >&2
        echo "$how" >&2
        exit 1
    fi
    for component in rustfmt clippy-driver; do
        command -v "$component" >/dev/null 2>&1 || {
            echo "setup: $component is missing: rustup component add rustfmt clippy" >&2
            exit 1
        }
    done
}

# npm package | version | what for
modules='
jssip|3.13.8|a WebSocket phone of the lab
ws|8.18.3|its WebSockets, without a browser
'

install_modules() {
    # From npm, which Debian does not have: beside the builds, and nothing of them runs here.
    wanted=$(printf '%s\n' "$modules" | while IFS='|' read -r module version why; do
        [ -z "$module" ] || grep -qs "\"version\": \"$version\"" "target/npm/node_modules/$module/package.json" \
            || printf '%s@%s ' "$module" "$version"
    done)
    [ -n "$wanted" ] || return 0
    echo "setup: these npm packages are missing: $wanted(a WebSocket phone of the lab)"
    # All of them each time: npm removes what it is not told of.
    all=$(printf '%s\n' "$modules" | while IFS='|' read -r module version why; do
        [ -z "$module" ] || printf '%s@%s ' "$module" "$version"
    done)
    mkdir -p target/npm
    # shellcheck disable=SC2086 # a list of words
    npm install --prefix target/npm --ignore-scripts --no-audit --no-fund --no-save $all || {
        echo "setup: npm could not fetch them; everything but the scenario \`websocket\` works without." >&2
    }
}

[ -z "$missing" ] || install_missing
check_rust
install_modules
echo "setup: everything is there"
