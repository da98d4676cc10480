//! The whole bridge before a real broker over a store in memory: most of it without a port.

mod connections;
mod document;
mod events;
mod leases;
mod matrix;
mod operators;
mod policy;
mod records;
mod support;
