//! Random life for the books, and what must hold in every moment of it.
//!
//! Owns the virtual clock, the generator of commands, a reference model that is as naive as the design
//! can be put into code, and the checkers of invariants. Must never know HTTP.
//!
//! Everything is a function of a seed: the same seed gives the same commands, answers and trace.

mod agreement;
mod checkers;
mod coverage;
mod dice;
pub mod exhaustive;
mod reference;
mod scene;
mod simulation;
mod world;

pub use checkers::Checkers;
pub use coverage::Coverage;
pub use dice::Dice;
pub use reference::{Card, Did, Reference};
pub use scene::{Scene, Transition, policy};
pub use simulation::{Failure, Run, Simulation, run};
pub use world::{Stats, Story, StoryFailure, World, fails, tell, tell_all};
