//! Stories of the whole product: each starts the real program and tells what people and programs see of it.

mod configuration;
mod denials;
mod devices;
mod disconnects;
mod emergency;
mod endurance;
mod fatal;
mod hostile;
mod kills;
mod leases;
mod live;
mod page;
mod policy;
mod records;
mod restarts;
mod run;
mod safe_start;
mod takeover;
