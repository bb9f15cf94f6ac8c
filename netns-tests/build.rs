//! Compiles `bpf/driver.bpf.c`, without which `bench ingress` and `bench relay/xdp` cannot run.

#[path = "../tunnel-io/bpf/compile.rs"]
mod compile;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    compile::compile_all(&[("driver", "no bench ingress, no bench relay/xdp")])
}
