//! What people, editors, tools and hosts do to files, on events and on the poll alone.

/// A test of each scenario on the file system's events and on the poll alone.
macro_rules! on_both_backends {
    ($($(#[$meta:meta])* fn $name:ident($rig:ident: Rig) $body:block)*) => {
        $($(#[$meta])* fn $name(mut $rig: Rig) $body)*

        mod inotify {
            $(#[test] fn $name() { super::$name(crate::rig::Rig::new(gpu_watch::BackendChoice::Auto)); })*
        }

        mod poll {
            $(#[test] fn $name() { super::$name(crate::rig::Rig::new(gpu_watch::BackendChoice::Poll)); })*
        }
    };
}

mod config;
mod detection;
mod hostile;
mod layouts;
mod limits;
mod reading;
mod rig;
mod status;
mod steady;
