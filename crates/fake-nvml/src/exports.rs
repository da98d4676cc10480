//! The exported functions, by what they are about.

mod device;
mod process;
mod system;
mod unsupported;
