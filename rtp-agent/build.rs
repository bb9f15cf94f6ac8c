//! Compiles `bpf/ports.bpf.c` and `bpf/relay.bpf.c`. Without them the program opens a socket for every port and
//! relays every packet itself.

#[path = "../tunnel-io/bpf/compile.rs"]
mod compile;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    compile::compile_all(&[
        ("ports", "a socket for every media port"),
        ("relay", "every packet takes the way through the sockets"),
    ])
}
