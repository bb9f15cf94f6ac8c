//! Compiles `bpf/ingress.bpf.c`. Without it the program forwards on its TUN path only.

#[path = "../tunnel-io/bpf/compile.rs"]
mod compile;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    compile::compile_all(&[("ingress", "every packet takes the TUN path")])
}
