//! The mean number of requests on a server: what nodes tell each other of their load.
//!
//! The number at one instant is noise. So each server's requests are added up over time, in
//! requests times milliseconds, whenever the number changes, and divided once in an interval.

use super::saved::Copied;
use super::{Now, Registry, SpaceName, member};
use crate::shm::{Server, flag};

/// Up to so many nodes are few: see [`flag::MANY_NODES`].
const FEW: u32 = 4;

/// Changes smaller than this, in thousandths of a request, are not told.
const SMALL: u32 = 100;

/// A walk through all servers that takes their means.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    next: u32,
    /// The others' requests are taken as they are, not in steps: nodes have come or gone.
    pub at_once: bool,
    /// All are told, whatever Redis has.
    pub all: bool,
    /// It is through.
    pub done: bool,
}

impl Round {
    /// One that begins.
    pub fn new(at_once: bool, all: bool) -> Self {
        Self { at_once, all, ..Self::default() }
    }
}

/// Brings `busy` up to now: to be called before the number of requests changes.
#[inline]
fn count(s: &mut Server, now: Now) {
    let passed = now.mono.saturating_sub(s.busy_until);
    s.busy += u64::from(s.conns) * passed;
    s.busy_until = s.busy_until.max(now.mono);
}

impl Registry<'_> {
    /// Adds up what a server has had until now.
    #[inline]
    pub(super) fn count_time(&mut self, server: u32, now: Now) {
        if self.g.header.shared.on != 0
            && let Some(s) = self.g.servers.get_mut(server as usize)
        {
            count(s, now);
        }
    }

    /// Takes the means of the next servers, `slots` at most, since the last time, and pushes those
    /// that are news, in thousandths. Moves what the balancer knows of other nodes towards what they
    /// said last.
    ///
    /// In steps of 1/nodes: when all nodes see the same server with too little to do, each makes up
    /// for its share alone. If each made up for all of it, they would send it all that the others
    /// are short of as well, and the next time none would send it anything. Half of that, because
    /// what comes of a step is seen only after the next: whole ones would overshoot until then.
    pub fn take_means(
        &mut self,
        round: &mut Round,
        slots: u32,
        now: Now,
        into: &mut Vec<(Copied, u32)>,
    ) {
        let high = self.g.header.high_water;
        let end = high.min(round.next.saturating_add(slots));
        let nodes = self.g.header.shared.nodes.max(1);
        let steps = nodes.saturating_mul(2);
        for slot in round.next..end {
            let s = &mut self.g.servers[slot as usize];
            // The addresses of names are counted by each node for itself.
            if s.live == 0 || s.is_of_name() {
                continue;
            }
            count(s, now);
            let time = now.mono.saturating_sub(s.busy_from);
            if time == 0 {
                continue;
            }
            let mean = u32::try_from(s.busy.saturating_mul(1000) / time).unwrap_or(u32::MAX);
            s.busy = 0;
            s.busy_from = now.mono;
            let told = s.told_mean;
            let news = mean.abs_diff(told) >= SMALL.max(told / 32) || (mean == 0 && told > 0);
            let mean = if news { mean } else { told };
            let (before, flags) = (s.others_damped, s.flags);
            s.flags &= !flag::MANY_NODES;
            if nodes > FEW {
                s.flags |= flag::MANY_NODES;
            }
            s.others_damped = if round.at_once {
                s.others
            } else if s.others > before {
                before + (s.others - before).div_ceil(steps)
            } else {
                before - (before - s.others).div_ceil(steps)
            };
            s.told_mean = mean;
            if (s.others_damped, s.flags) != (before, flags) {
                member::reclassify(&mut self.g, slot);
            }
            if news || (round.all && mean > 0) {
                let s = &self.g.servers[slot as usize];
                into.push((Copied::new(self.space_bytes(s), slot, s), mean));
            }
        }
        round.next = end;
        round.done = end >= high;
    }

    /// Takes the sum of all nodes' means for a server, and this node's as Redis has it, in
    /// thousandths. True when Redis has none though it was told: the server was removed and
    /// registered again, while this node never lost it.
    pub fn take_total(&mut self, space: SpaceName<'_>, name: &[u8], total: u64, mine: u64) -> bool {
        let Some(slot) = self.find_space(space).and_then(|s| self.find_name(s.slot, name)) else {
            return false;
        };
        let s = &mut self.g.servers[slot as usize];
        if s.is_of_name() {
            return false;
        }
        let others = total.saturating_sub(mine).saturating_mul(256) / 1000;
        s.others = u32::try_from(others).unwrap_or(u32::MAX).min(u32::MAX - 128);
        let lost = mine == 0 && s.told_mean > 0;
        member::reclassify(&mut self.g, slot);
        lost
    }

    /// Forgets what other nodes have on the next servers, `slots` at most: it is read anew. Returns
    /// whether it is through.
    pub fn forget_others(&mut self, next: &mut u32, slots: u32) -> bool {
        let end = self.g.header.high_water.min(next.saturating_add(slots));
        for slot in *next..end {
            let s = &mut self.g.servers[slot as usize];
            if s.live != 0 && (s.others != 0 || s.others_damped != 0) {
                (s.others, s.others_damped) = (0, 0);
                member::reclassify(&mut self.g, slot);
            }
        }
        *next = end;
        end >= self.g.header.high_water
    }
}
