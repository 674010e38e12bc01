//! `slow_start`: a server that is new, or has come back, grows to its weight.
//!
//! Its share of the weight ([`Server::warmth`]) follows the clock in steps: whenever it is given a
//! request or one ends, at each cleanup, and, for the [`WARMING`] that the header has room for, a few
//! at each choice. So nothing is walked through, and a server that nobody asks for is not left behind
//! with a rank of long ago.

use super::order;
use super::{Now, Registry};
use crate::shm::{Server, Tables, WARMING};

/// Most servers that one choice lets grow.
const STEPS_A_CHOICE: usize = 4;

/// Makes a server begin anew.
pub(super) fn begin(s: &mut Server, now: Now) {
    s.started_mono = now.mono;
    s.warmth = u16::from(s.slow_start_ms > 0);
}

/// How much of its weight a server that grows has by now.
fn warmth(s: &Server, now: Now) -> u16 {
    let since = now.mono.saturating_sub(s.started_mono);
    match u64::from(s.slow_start_ms) {
        time if since >= time => 0,
        time => ((since * 256 / time) as u16).max(1),
    }
}

/// Lets a server grow, if it does.
#[inline]
pub(super) fn step(t: &mut Tables<'_>, slot: u32, now: Now) {
    if t.servers[slot as usize].warmth > 0 {
        grow(t, slot, now);
    }
}

#[cold]
fn grow(t: &mut Tables<'_>, slot: u32, now: Now) {
    let s = &mut t.servers[slot as usize];
    let grown = warmth(s, now);
    if s.warmth == grown {
        return;
    }
    s.warmth = grown;
    order::hasten(t, slot);
    if order::stands(t, slot) {
        order::rank(t, slot);
    }
}

/// Remembers a server that grows; nothing happens to one that does not, or when there is no room.
pub(super) fn note(t: &mut Tables<'_>, slot: u32) {
    let len = (t.header.warming_len as usize).min(WARMING);
    let known = t.header.warming[..len].contains(&slot);
    let s = &t.servers[slot as usize];
    if s.warmth > 0 && !s.is_name() && !known && len < WARMING {
        t.header.warming[len] = slot;
        t.header.warming_len = len as u32 + 1;
    }
}

impl Registry<'_> {
    /// Lets the next few of those that are remembered grow, and forgets those that have grown.
    #[inline]
    pub(super) fn warm_up(&mut self, now: Now) {
        if self.g.header.warming_len > 0 {
            self.warm_some(now);
        }
    }

    #[cold]
    fn warm_some(&mut self, now: Now) {
        let t = &mut *self.g;
        for _ in 0..STEPS_A_CHOICE {
            let len = (t.header.warming_len as usize).min(WARMING);
            let Some(last) = len.checked_sub(1) else { return };
            let at = t.header.warming_next as usize % len;
            let slot = t.header.warming[at];
            if t.servers.get(slot as usize).is_some_and(|s| s.live != 0) {
                step(t, slot, now);
            }
            let grows = t.servers.get(slot as usize).is_some_and(|s| s.live != 0 && s.warmth > 0);
            if grows {
                t.header.warming_next = at as u32 + 1;
            } else {
                t.header.warming[at] = t.header.warming[last];
                t.header.warming_len = last as u32;
            }
            if len <= STEPS_A_CHOICE && at == last {
                return;
            }
        }
    }

    /// After a repair: who grows is found again.
    pub(super) fn find_warming(&mut self) {
        (self.g.header.warming_len, self.g.header.warming_next) = (0, 0);
        for slot in 0..self.g.header.high_water {
            if self.g.servers[slot as usize].live != 0 {
                note(&mut self.g, slot);
            }
        }
    }
}
