//! The program; everything is in the library.

fn main() -> std::process::ExitCode {
    netns_tests::cli::main()
}
