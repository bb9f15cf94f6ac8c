// Compiles BPF programs for the kernel, if there is a clang that can. A part of the build scripts of all crates
// that have such programs.
//
// Without a clang the build succeeds all the same, with an empty file in the object's place; who loads it says why it
// does not run.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crate's programs and what they include.
const FOLDER: &str = "bpf";
/// What all XDP programs here share.
const SHARED: &str = "../tunnel-io/bpf";

/// Compiles `bpf/NAME.bpf.c` to `NAME.bpf.o` in OUT_DIR for each name; beside it, what is so without it.
pub(crate) fn compile_all(programs: &[(&str, &str)]) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    println!("cargo::rerun-if-changed={SHARED}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    for (name, without) in programs {
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
