//! The probe program on its own, for this crate's tests. The broker runs `gpu-manager probe` instead.

use std::io;

use gpu_device::child::{ENUMERATE_FLAG, enumerate, serve};

fn main() -> io::Result<()> {
    match std::env::args().any(|argument| argument == ENUMERATE_FLAG) {
        true => enumerate(),
        false => serve(),
    }
}
