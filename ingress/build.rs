//! Compiles `bpf/ingress.bpf.c` for the kernel, if there is a clang that can.
//!
//! Without one the build succeeds all the same, with an empty file in the object's place: the program
//! then forwards on its TUN path only and says why.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "bpf/ingress.bpf.c";
/// It and what it includes.
const FOLDER: &str = "bpf";
/// What all XDP programs here share.
const SHARED: &str = "../tunnel-io/bpf";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    println!("cargo::rerun-if-changed={SHARED}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let object = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("ingress.bpf.o");
    if let Err(reason) = compile(&object) {
        for line in reason.lines() {
            println!("cargo::warning={line}");
        }
        println!("cargo::warning=built without {SOURCE}: every packet takes the TUN path");
        std::fs::write(&object, [])?;
    }
    Ok(())
}

fn compile(object: &Path) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    // Debian keeps <asm/types.h> in a folder of the machine's name, of which the target bpf knows nothing.
    let machine = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let output = Command::new(&clang)
        .args(["-target", "bpf", "-O2", "-g", "-Wall"])
        .arg(format!("-I/usr/include/{machine}-linux-gnu"))
        .arg(format!("-I{SHARED}"))
        .args(["-c", SOURCE, "-o"])
        .arg(object)
        .output()
        .map_err(|error| format!("{clang}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{clang}: {}\n{text}", output.status))
}
