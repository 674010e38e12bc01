//! Nodes that share one Redis, in each of the ways in which that can go wrong.

mod histories;
mod losses;

use super::sim::{Cable, Sim};
use super::*;
