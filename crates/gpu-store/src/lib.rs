//! Durable rows behind one trait: redb and memory.
