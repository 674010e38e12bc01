//! The cleanup: what silence leads to in the end.
//!
//! It walks the servers in slices, so that the lock is held for a few microseconds at a time.

use super::life::OnExpire;
use super::space::SpaceRef;
use super::{Event, Events, Happening, Now, Registry, Rules};
use crate::shm::{Server, fault, flag, pending, reason};

/// A walk through the servers of one namespace or of all, and what it found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    only: Option<SpaceRef>,
    next: u32,
    /// With `panic_threshold`: all have been looked at, so it is known how many are silent.
    known: bool,
    /// It is through.
    pub done: bool,
    /// Servers silent for longer than the TTL and not switched off by hand.
    pub expired: u64,
    /// Of these, switched off now.
    pub disabled: u64,
    /// Of these, forgotten.
    pub removed: u64,
}

impl Sweep {
    /// Through one namespace.
    pub fn of(space: SpaceRef) -> Self {
        Self { only: Some(space), ..Self::default() }
    }
}

impl Registry<'_> {
    /// Looks at up to `slots` servers more.
    pub fn sweep(
        &mut self,
        sweep: &mut Sweep,
        slots: u32,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) {
        let gone = sweep.only.is_some_and(|space| !self.is_current(space));
        if gone || self.is_retired() {
            sweep.done = true;
            return;
        }
        // Who is silent must be known of all before the first is switched off or forgotten.
        let marks = rules.panic_threshold > 0 && !sweep.known;
        let high = self.g.header.high_water;
        let end = high.min(sweep.next.saturating_add(slots));
        for slot in sweep.next..end {
            let s = &self.g.servers[slot as usize];
            let wanted = sweep.only.is_none_or(|space| s.space == space.slot);
            if s.live == 0 || !wanted {
                continue;
            }
            if rules.silent(s, self.afar(), now) {
                if marks {
                    if s.flags & flag::EXPIRED == 0 {
                        self.expire(slot, now, events);
                    }
                    continue;
                }
                self.sweep_one(slot, sweep, rules, now, events);
                fault::point!("sweep.server");
            } else if rules.revives(s, now) {
                self.revive(slot, now, events);
            } else if s.warmth > 0 {
                super::warm::step(&mut self.g, slot, now);
                super::warm::note(&mut self.g, slot);
            }
        }
        fault::point!("sweep.slice");
        sweep.next = end;
        if end < high {
            return;
        }
        match sweep.only {
            Some(space) => _ = self.mind_panic(space.slot, rules, events),
            None => self.mind_all_panics(rules, events),
        }
        if marks {
            (sweep.known, sweep.next) = (true, 0);
        } else {
            sweep.done = true;
        }
    }

    /// Brings back a server whose silence is not too long any more, because the TTL has grown.
    pub(super) fn revive(&mut self, slot: u32, now: Now, events: &mut Events) {
        let s = self.g.servers[slot as usize];
        self.end_silence(slot, s, now);
        if s.flags & flag::DISABLED == 0 && !s.is_of_name() {
            self.say(Happening::Back, slot, events);
        }
    }

    fn sweep_one(
        &mut self,
        slot: u32,
        sweep: &mut Sweep,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) {
        let was_known = self.g.servers[slot as usize].flags & flag::EXPIRED != 0;
        if !was_known {
            self.expire(slot, now, events);
        }
        let s = self.g.servers[slot as usize];
        // One switched off by hand waits for the hand that switches it on; an address goes the way of
        // its name.
        if s.flags & flag::DISABLED != 0 || s.is_of_name() {
            return;
        }
        sweep.expired += 1;
        if self.in_panic(s.space) || (rules.panic_threshold > 0 && !was_known) {
            return;
        }
        let silent = now.mono.saturating_sub(s.heartbeat_mono);
        let forget = rules.on_expire == OnExpire::Remove
            || (rules.remove_after > 0 && silent > rules.remove_after);
        if forget && self.shares() {
            // Other nodes may have heard of it: Redis decides, see `News::Forget`.
            if s.pending & pending::FORGET == 0 {
                self.g.servers[slot as usize] = self.news_of(s, pending::FORGET, now);
                self.enqueue(slot);
            }
        } else if forget {
            let space = &self.g.spaces[s.space as usize];
            events.push(Event::new(Happening::Forgotten, space, &s, silent));
            self.erase(slot);
            sweep.removed += 1;
        } else if s.flags & flag::SILENCED == 0 {
            let flags = s.flags | flag::SILENCED;
            let disabled_reason = reason::HEARTBEAT_TIMEOUT;
            let (disabled_wall, updated_wall) = (now.wall, now.wall);
            self.silence_addresses(slot, now);
            self.replace(slot, Server { flags, disabled_reason, disabled_wall, updated_wall, ..s });
            sweep.disabled += 1;
        }
    }
}
