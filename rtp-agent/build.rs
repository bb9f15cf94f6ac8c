//! Compiles `bpf/ports.bpf.c` and `bpf/relay.bpf.c` for the kernel, if there is a clang that can.
//!
//! Without one the build succeeds all the same, with empty files in the objects' places: the program
//! then opens a socket for every port, relays every packet itself, and says why.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each, and what is so without it.
const PROGRAMS: [(&str, &str); 2] = [
    ("ports", "a socket for every media port"),
    ("relay", "every packet takes the way through the sockets"),
];
/// They and what they include.
const FOLDER: &str = "bpf";
/// What all XDP programs here share.
const SHARED: &str = "../tunnel-io/bpf";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    println!("cargo::rerun-if-changed={SHARED}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    for (name, without) in PROGRAMS {
        let source = format!("{FOLDER}/{name}.bpf.c");
        let object = out.join(format!("{name}.bpf.o"));
        if let Err(reason) = compile(&source, &object) {
            for line in reason.lines() {
                println!("cargo::warning={line}");
            }
            println!("cargo::warning=built without {source}: {without}");
            std::fs::write(&object, [])?;
        }
    }
    Ok(())
}

fn compile(source: &str, object: &Path) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    // Debian keeps <asm/types.h> in a folder of the machine's name, of which the target bpf knows nothing.
    let machine = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let output = Command::new(&clang)
        .args(["-target", "bpf", "-O2", "-g", "-Wall"])
        .arg(format!("-I/usr/include/{machine}-linux-gnu"))
        .arg(format!("-I{SHARED}"))
        .args(["-c", source, "-o"])
        .arg(object)
        .output()
        .map_err(|error| format!("{clang}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{clang}: {}\n{text}", output.status))
}
