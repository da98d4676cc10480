//! Turns a set of paths into the bytes of their files, read once a change has settled.
