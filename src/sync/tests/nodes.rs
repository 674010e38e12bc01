//! Nodes that share one Redis, in each of the ways in which that can go wrong.

mod balance;
mod counts;
mod damage;
mod hearing;
mod histories;
mod losses;
mod settings;
mod silence;
mod wipes;

use super::sim::{Cable, Sim};
use super::*;
