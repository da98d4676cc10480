//! The program `gpu-manager`: the broker, and the command line that talks to one.
//!
//! Owns arguments, output and exit codes. Holds no rule of its own: what it shows and does is what the
//! broker answers.

mod cli;
mod file;
mod offline;
mod owner;
mod probe;
mod serve;

fn main() -> std::process::ExitCode {
    cli::main()
}
